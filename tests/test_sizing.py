"""Students of many sizes: their megabytes by hand, and which of them fit."""

import pytest

from xdistil_jax.models.bilstm import BiLSTMSpec, parameter_count
from xdistil_jax.sizing import SIZES, Candidate, candidates, describe


def test_megabytes_are_those_of_the_parameters():
    spec = BiLSTMSpec(3000, teacher_width=24, classes=7)
    found = list(candidates(spec, ((4, 6), (8, 6)), repeats=2))
    assert [(each.embed, each.hidden) for each in found] == [(4, 6), (8, 6)]
    count = parameter_count(BiLSTMSpec(3000, 4, 6, 24, 7))
    assert found[0].parameters == count
    assert found[0].fp32_mb == pytest.approx(4 * count / 1e6)
    biases = 2 * 4 * 6 + 24 + 7
    assert found[0].int8_mb == pytest.approx((count - biases + 4 * biases) / 1e6)
    assert all(each.ms > 0 for each in found)


def test_the_papers_sizes_are_among_them():
    assert {(50, 200), (100, 200), (300, 600)} <= set(SIZES)


def test_those_that_fit_are_marked():
    found = [
        Candidate(100, 200, 3_000_000, 12.0, 3.0, 0.9),
        Candidate(50, 200, 1_000_000, 4.0, 1.0, 0.9),
        Candidate(50, 600, 2_000_000, 5.0, 2.0, 1.1),
        Candidate(300, 600, 9_000_000, 36.0, 9.0, 0.5),
    ]
    head, *rows = describe(found, 6.0, 1.0)
    assert head[-1] == "fits"
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("50", "200", "fp32 int8"), ("50", "600", ""), ("100", "200", "int8"), ("300", "600", "")
    ]  # fmt: skip
