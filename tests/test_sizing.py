"""Students of many sizes: their megabytes by hand, and which of them fit."""

import pytest

from xdistil_jax.configs import STUDENTS
from xdistil_jax.models.bilstm import BiLSTMSpec, parameter_count
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.transformer import TransformerSpec
from xdistil_jax.sizing import SIZES, Candidate, candidates, describe, heads_of


def test_megabytes_are_those_of_the_parameters():
    spec = BiLSTMSpec(3000, teacher_width=24, classes=7)
    found = list(candidates(spec, ((4, 6), (8, 6)), repeats=2))
    assert [each.size for each in found] == [(4, 6), (8, 6)]
    count = parameter_count(BiLSTMSpec(3000, 4, 6, 24, 7))
    assert found[0].parameters == count
    assert found[0].fp32_mb == pytest.approx(4 * count / 1e6)
    biases = 2 * 4 * 6 + 24 + 7
    assert found[0].int8_mb == pytest.approx((count - biases + 4 * biases) / 1e6)
    assert all(each.ms > 0 for each in found)


def test_a_transformer_is_sized_without_what_only_training_needs():
    encoder = EncoderSpec(3000, 24, 1, 2, 48, positions=32, token_types=0, stacked=False)
    spec = TransformerSpec(encoder, 40, ("layer_4", "layer_3"), source_width=40)
    [found] = candidates(spec, ((12, 2),), repeats=2)
    # Four products and two of the feed-forward block, their biases, two norms; by hand.
    weights = 2 * (4 * 12 * 12 + 2 * 12 * 48) + 12 * 7
    small = 2 * (5 * 12 + 48 + 4 * 12) + 2 * 12 + 7
    rows = (3000 + 32) * 12
    assert (found.size, found.parameters) == ((12, 2), weights + small + rows)
    assert found.fp32_mb == pytest.approx(4 * found.parameters / 1e6)
    assert found.int8_mb == pytest.approx((weights + rows + 4 * small) / 1e6)
    assert found.ms > 0


def test_the_papers_sizes_are_among_them():
    assert {(50, 200), (100, 200), (300, 600)} <= set(SIZES["bilstm"])
    presets = {(s.width, s.layers) for s in STUDENTS.values() if s.kind == "transformer"}
    assert {(48, 2), (144, 1), (276, 3), *presets} <= set(SIZES["transformer"])
    given = {s.width: s.heads for s in STUDENTS.values() if s.kind == "transformer"}
    assert given == {width: heads_of(width) for width in given}
    assert all(width % heads_of(width) == 0 for width, _ in SIZES["transformer"])


def test_those_that_fit_are_marked():
    found = [
        Candidate((100, 200), 3_000_000, 12.0, 3.0, 0.9),
        Candidate((50, 200), 1_000_000, 4.0, 1.0, 0.9),
        Candidate((50, 600), 2_000_000, 5.0, 2.0, 1.1),
        Candidate((300, 600), 9_000_000, 36.0, 9.0, 0.5),
    ]
    head, *rows = describe(found, ("E", "H"), 6.0, 1.0)
    assert (head[:2], head[-1]) == (("E", "H"), "fits")
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("50", "200", "fp32 int8"), ("50", "600", ""), ("100", "200", "int8"), ("300", "600", "")
    ]  # fmt: skip
