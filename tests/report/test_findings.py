"""What a study says of its hypotheses."""

import pytest

from xdistil_jax.report.compare import Comparison
from xdistil_jax.report.findings import verdicts


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.2, 1.8, "holds"), (-0.8, 1.8, "not shown"), (-1.8, -0.2, "turned round")],
)
def test_a_hypothesis_holds_where_the_whole_interval_is_above_0(low, high, verdict):
    found = verdicts({("D4.2", "D1"): Comparison((low + high) / 2, low, high, 0.012)})
    middle = f"{(low + high) / 2:+.1f} points ({low:+.1f} to {high:+.1f}, p = 0.012)"
    assert found == f"- D4.2 over D1: {middle}: {verdict}."


def test_without_hypotheses_there_is_nothing_to_say():
    assert verdicts({}) == ""
