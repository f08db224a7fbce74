"""Plans: every row in one batch that it fits, few shapes, little padding."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdistil_jax.teacher.plan import cut_batches, padded_widths


@given(st.integers(4, 2000))
def test_widths_are_few_and_reach_the_maximum(max_length):
    widths = padded_widths(max_length)
    assert len(widths) <= 8 + 4 * max(0, np.ceil(np.log2(max_length / 32)))
    assert list(widths) == sorted(set(widths))
    assert widths[-1] == max_length
    assert all(width % 4 == 0 for width in widths[:-1])
    # A row is padded by three pieces at most, or by a quarter of its length.
    assert all(b - a <= max(4, a / 4) for a, b in pairwise(widths))


@pytest.mark.parametrize(
    ("max_length", "widths"),
    [
        (8, (4, 8)),
        (50, (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 50)),
        (150, (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 150)),
    ],
)
def test_widths_that_are_known(max_length, widths):
    assert padded_widths(max_length) == widths


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


def test_padding_stays_small():
    lengths = np.sort(np.random.default_rng(0).gamma(4, 5, 20_000).astype(int) + 3)[::-1]
    cuts = cut_batches(np.minimum(lengths, 128), padded_widths(128), token_budget=8192, multiple=8)
    padded = sum(cut.size * cut.width for cut in cuts)
    assert padded < 1.2 * np.minimum(lengths, 128).sum()
