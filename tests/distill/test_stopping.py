"""Stopping equals its plain definition, whatever figures come."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdistil_jax.distill.stopping import StopFlag, Stopping, score

# Few distinct figures, so that ties happen.
figures = st.lists(st.sampled_from([0.0, 0.25, 0.5, -1.0, math.nan, -math.inf]), max_size=12)


def observe(values):
    """The state after each of ``values``, seen at steps 0, 10, 20, …"""
    states = [Stopping()]
    for number, value in enumerate(values):
        states.append(states[-1].observe(value, 10 * number))
    return states


@given(figures, st.integers(1, 5))
def test_stopping_equals_its_definition(values, patience):
    for count, state in enumerate(observe(values)):
        seen = [value for value in values[:count] if value > -math.inf]
        if not seen:
            assert state == Stopping(since=count)
            continue
        first = values.index(max(seen))  # The earliest of equals.
        assert (state.best, state.best_step) == (values[first], 10 * first)
        assert state.since == count - 1 - first
        assert state.exhausted(patience) == (count - 1 - first >= patience)
        assert state.improved(10 * (count - 1)) == (first == count - 1)


def test_a_tie_and_nan_keep_the_earlier():
    state = observe([0.5, 0.5, math.nan])[-1]
    assert state == Stopping(0.5, 0, 2)
    assert not state.exhausted(3)
    assert state.observe(0.75, 30) == Stopping(0.75, 30, 0)


@pytest.mark.parametrize(
    ("watched", "value", "expected"), [("dev_f1", 0.3, 0.3), ("transfer_loss", 0.3, -0.3)]
)
def test_losses_count_downwards(watched, value, expected):
    assert score(watched, value) == expected
    assert score(watched, score(watched, value)) == value


def test_a_flag_is_up_when_it_is_raised_or_its_time_has_come():
    flag = StopFlag()
    assert not flag.is_up
    flag.deadline = time.monotonic() + 1e6
    assert not flag.is_up
    flag.deadline = time.monotonic()
    assert flag.is_up
    assert not flag.raised
    assert StopFlag(raised=True).is_up
