"""Shapes: every row in one batch that it fits, few shapes, little padding."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdistil_jax.teacher.shapes import cut_batches, padded_widths


@given(st.integers(4, 2000), st.sampled_from([4, 8, 16]))
def test_widths_are_few_and_reach_the_maximum(max_length, per_octave):
    widths = padded_widths(max_length, per_octave=per_octave)
    assert len(widths) <= per_octave * max(1, np.ceil(np.log2(max_length / 16)) + 1)
    assert list(widths) == sorted(set(widths))
    assert widths[-1] == max_length
    # A row is padded by as many pieces at most as a share of its length, or of 16 pieces.
    assert all(b - a <= max(16, a) / per_octave for a, b in pairwise(widths))


@pytest.mark.parametrize(
    ("max_length", "per_octave", "widths"),
    [
        (8, 4, (4, 8)),
        (50, 4, (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 50)),
        (150, 4, (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 150)),
        (50, 16, (*range(1, 32), *range(32, 50, 2), 50)),
    ],
)
def test_widths_that_are_known(max_length, per_octave, widths):
    assert padded_widths(max_length, per_octave=per_octave) == widths


@given(
    st.lists(st.integers(1, 128), max_size=300),
    st.integers(1, 4000),
    st.sampled_from([1, 2, 8]),
)
def test_batches_cover_every_row_once_and_fit(lengths, token_budget, multiple):
    lengths = np.array(sorted(lengths, reverse=True), int)
    widths = padded_widths(128)
    cuts = cut_batches(lengths, widths, token_budget=token_budget, multiple=multiple)
    assert [cut.start for cut in cuts] == [0, *(cut.stop for cut in cuts)][: len(cuts)]
    assert (cuts[-1].stop if cuts else 0) == len(lengths)
    for cut in cuts:
        assert cut.width in widths
        assert lengths[cut.start] <= cut.width
        assert cut.size % multiple == 0
        assert cut.size * cut.width <= max(token_budget, multiple * cut.width)
        assert cut.stop - cut.start == cut.size or cut is cuts[-1]


def test_cutting_goes_on_at_the_boundary_of_a_batch():
    lengths = np.sort(np.random.default_rng(0).integers(3, 129, 500))[::-1]
    widths = padded_widths(128)
    cuts = cut_batches(lengths, widths, token_budget=1024, multiple=8)
    middle = cuts[7].start
    rest = cut_batches(lengths[middle:], widths, token_budget=1024, multiple=8)
    moved = [cut._replace(start=cut.start + middle, stop=cut.stop + middle) for cut in rest]
    assert moved == cuts[7:]


@pytest.mark.parametrize(("per_octave", "bound"), [(4, 1.2), (16, 1.06)])
def test_padding_stays_small(per_octave, bound):
    lengths = np.sort(np.random.default_rng(0).gamma(4, 5, 20_000).astype(int) + 3)[::-1]
    widths = padded_widths(128, per_octave=per_octave)
    cuts = cut_batches(np.minimum(lengths, 128), widths, token_budget=8192, multiple=8)
    padded = sum(cut.size * cut.width for cut in cuts)
    assert padded < bound * np.minimum(lengths, 128).sum()
