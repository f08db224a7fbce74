"""Learning rates equal their formulas, and those of the paper's code value for value."""

import math
import typing
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.distill.toys import GROUPS, STAGES, Records, make_params, make_training
from xdistil_jax.distill import loop
from xdistil_jax.distill.loop import run_plan
from xdistil_jax.distill.rates import HParams, abstract_hparams, hparams, learning_rate
from xdistil_jax.distill.stages import Decay, Schedule, Stage, StopRule, Term
from xdistil_jax.distill.strategies import PUBLISHED

EPOCH = 7


def rates(schedule, steps, total, epoch=EPOCH):
    """Of ``steps``, in a stage of ``total`` whose epochs have ``epoch`` each."""
    stage = Stage("s", (Term("ce"),), ("head",), 1.0, schedule)
    h = hparams(stage, total, epoch)
    one = jax.jit(jax.vmap(lambda step: learning_rate(step, h, schedule.decay)))
    return np.asarray(one(jnp.asarray(steps, jnp.int32)))


# --- the paper's code -----------------------------------------------------------------------


def cosine_lr_schedule(epochs, high=1e-3, low=1e-8, period=50, period_mult=2, high_lr_mult=0.97):
    """``CosineLRSchedule`` of its first two versions: t counts from 0 up to the period, which it
    reaches, and starts again at 0 in the next epoch."""
    found, t = [], 0
    for _ in range(epochs):
        found.append(low + 0.5 * (high - low) * (1 + math.cos(math.pi * t / period)))
        t += 1
        if t > period:
            t, period, high = 0, period * period_mult, high * high_lr_mult
    return np.array(found)


def test_restarts_equal_the_codes_schedule_in_every_epoch():
    # Three restarts: 51 + 101 + 201 epochs, and some more.
    epochs = 400
    expected = cosine_lr_schedule(epochs)
    assert [int(n) for n in np.flatnonzero(np.diff(expected) > 5e-4) + 1] == [51, 152, 353]
    first = rates(PUBLISHED["bilstm"], np.arange(epochs) * EPOCH, 80 * EPOCH)
    np.testing.assert_allclose(first, expected, rtol=2e-5, atol=2e-10)
    last = rates(PUBLISHED["bilstm"], np.arange(epochs) * EPOCH + EPOCH - 1, 80 * EPOCH)
    assert np.array_equal(first, last), "the rate stays as it is for an epoch"


@pytest.mark.parametrize(("period", "mult", "shrink"), [(1, 1, 1.0), (3, 1, 0.5), (4, 3, 0.9)])
def test_restarts_with_other_numbers(period, mult, shrink):
    schedule = Schedule(
        0.1, 0.0, "restarts", 0.01, period=period, period_mult=mult, peak_mult=shrink
    )
    expected = cosine_lr_schedule(60, 0.1, 0.01, period, mult, shrink)
    found = rates(schedule, np.arange(60), 60)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_the_teachers_rates_equal_the_codes_in_every_epoch():
    """Second version: 10 epochs of warm-up to 1e-5, then down to 1e-7 by equal factors until the
    last of 32, one epoch before it would be reached."""
    expected = [1e-5 / 10 * (epoch + 1) for epoch in range(10)]
    expected += [1e-5 * math.exp(math.log(1e-7 / 1e-5) * n / 23) for n in range(1, 23)]
    found = rates(PUBLISHED["teacher"], np.arange(32 * EPOCH), 32 * EPOCH)
    np.testing.assert_allclose(found, np.repeat(expected, EPOCH), rtol=1e-5)


@pytest.mark.parametrize(("total", "warmup"), [(99, 0.1), (30, 0.1), (20, 0.0), (1, 0.1)])
def test_the_first_teachers_rates_equal_berts_script_in_every_step(total, warmup):
    """``create_optimizer``: polynomial_decay to 0 with power 1, and another rate in warm-up."""
    schedule, rise = replace(PUBLISHED["bert teacher"], warmup=warmup), int(total * warmup)
    # It goes down to 0, whatever the floor is.
    schedule = replace(schedule, floor=1e-5)
    expected = [
        5e-5 * step / rise if step < rise else 5e-5 * (1 - step / total) for step in range(total)
    ]
    found = rates(schedule, np.arange(total), total)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)


def test_the_transformers_rate_is_constant():
    found = rates(PUBLISHED["transformer"], np.arange(99), 99)
    assert np.array_equal(found, np.full(99, 3e-5, np.float32))


# --- formulas -------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0.2, 100), (0.0, 30), (0.05, 7), (1.0, 10)])
def test_learning_rates(decay, warmup, total):
    peak, floor = 0.3, 0.01
    steps = np.arange(total + 1)
    found = rates(Schedule(peak=peak, warmup=warmup, decay=decay, floor=floor), steps, total)
    rise = max(1.0, warmup * total)
    progress = np.clip((steps - rise) / max(total - rise, 1), 0, 1)
    share = {"cosine": (1 + np.cos(np.pi * progress)) / 2, "linear": 1 - progress, "constant": 1}
    after = floor + (peak - floor) * share[decay]
    expected = np.where(steps + 1 < rise, peak * (steps + 1) / rise, after)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert found.max() == pytest.approx(peak)
    if decay != "constant" and warmup < 1:
        assert found[-1] == pytest.approx(floor)


def test_cosine_equals_optax():
    found = rates(Schedule(peak=0.3, warmup=0.2, floor=0.01), np.arange(101), 100)
    expected = optax.warmup_cosine_decay_schedule(0.0, 0.3, 20, 100, 0.01)
    for step in range(101):
        # While it warms up, the first step isn't lost: it has a rate already.
        np.testing.assert_allclose(found[step], expected(step + (step < 20)), rtol=1e-5)


@pytest.mark.parametrize("decay", typing.get_args(Decay))
def test_by_epoch_each_epoch_has_one_rate_and_epochs_are_like_steps(decay):
    schedule = Schedule(0.1, 0.25, decay, 0.001, period=5)
    by_step = rates(schedule, np.arange(40), 40)
    by_epoch = rates(replace(schedule, every="epoch"), np.arange(40 * EPOCH), 40 * EPOCH)
    np.testing.assert_allclose(by_epoch, np.repeat(by_step, EPOCH), rtol=1e-6)
    assert len(set(by_step.tolist())) > 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay": "exponential", "floor": 0.0}, "schedule.floor is 0 .* needs a floor above 0"),
        ({"decay": "exponential", "floor": 1.0}, "schedule.floor is 1 and schedule.peak 0.001"),
        ({"decay": "restarts", "period": 0.0}, "schedule.period is 0 .* at least 1"),
        ({"decay": "restarts", "period_mult": 0.5}, "schedule.period_mult 0.5: restarts need"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**fields)
    assert Schedule(**{**fields, "decay": "linear"}).decay == "linear"


# --- in a run -------------------------------------------------------------------------------


def test_the_loop_says_how_many_steps_an_epoch_has(monkeypatch):
    """By the rate that the steps of a run report."""
    found, call = [], loop.train_call

    def calling(*args):
        def stepping(state, arrays, feed, h):
            after, metrics = call(*args)(state, arrays, feed, h)
            found.append((int(after.step) - 1, float(metrics.learning_rate)))
            return after, metrics

        return stepping

    monkeypatch.setattr(loop, "train_call", calling)
    halved = Schedule(0.02, 0.0, "restarts", 0.01, every="epoch", period=1, period_mult=1)
    stage = Stage("ce", (Term("ce"),), GROUPS, 1.0, halved, StopRule(4, 0.25, patience=9))
    writer = Records()
    run_plan(make_training(writer=writer), (stage,), make_params())
    total = writer.written[-1]["step"]
    epoch = total // 4
    assert epoch > 2
    peaks = {0: 0.02, 1: 0.01, 2: 0.02 * 0.97, 3: 0.01}
    assert len(found) > 4
    for step, rate in found:
        assert rate == pytest.approx(peaks[step // epoch]), (step, epoch)


def test_numbers_are_traced_and_abstract_ones_are_like_them():
    for stage in STAGES:
        real, abstract = hparams(stage, 10, 3), abstract_hparams(len(stage.terms))
        assert isinstance(abstract, HParams)
        for mine, its in zip(real, abstract, strict=True):
            assert (mine.shape, mine.dtype) == (its.shape, its.dtype)
