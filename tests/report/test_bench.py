"""What is timed, in which order, and what is not: with a clock of our own, so nothing is flaky."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xdistil_jax.report import bench
from xdistil_jax.types import EncoderOutput


class _Clock:
    """Stands still until a call moves it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class _Result:
    """An array that takes its time after it was dispatched."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def block_until_ready(self):
        self.clock.now += self.seconds
        return self


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(bench, "perf_counter", clock)
    return clock


def _call(clock, seconds, log=None, name=""):
    """A call whose first run compiles for 100 s."""
    runs = iter([100.0, *seconds])

    def call():
        if log is not None:
            log.append(name)
        return _Result(clock, next(runs))

    return call


def test_parameters_are_counted_from_arrays_and_from_shapes():
    tree = {"a": np.zeros((3, 4)), "b": {"c": jax.ShapeDtypeStruct((5,), jnp.float32)}}
    assert bench.parameters(tree | {"d": np.zeros(())}) == 12 + 5 + 1


def test_latency_waits_for_the_result_and_leaves_out_compilation(clock):
    found = bench.latency(_call(clock, [9.0, 1.0, 2.0, 3.0]), repeats=3, warmup=2)
    assert found.median_ms == pytest.approx(2000)
    assert found.p90_ms == pytest.approx(np.percentile([1000, 2000, 3000], 90))
    assert found.repeats == 3


def test_compare_times_the_two_in_turn(clock):
    log = []
    found = bench.compare(
        _call(clock, [4.0, 6.0, 5.0], log, "teacher"),
        _call(clock, [1.0, 1.0, 1.0], log, "student"),
        repeats=3,
        warmup=1,
    )
    assert log == ["teacher", "student"] * 4
    assert found.ratio == pytest.approx(5)
    assert found.to_json()["student"] == {"median_ms": 1000, "p90_ms": 1000, "repeats": 3}


def test_the_budget_ends_the_measurement_but_leaves_one_figure(clock):
    spent = bench.latency(_call(clock, [1.0] * 9), repeats=9, warmup=1, budget_s=103.0)
    assert spent.repeats == 3
    assert bench.latency(_call(clock, [1.0] * 9), repeats=9, warmup=5, budget_s=1.0).repeats == 1


@pytest.mark.parametrize("wrong", [{"repeats": 0, "warmup": 1}, {"repeats": 1, "warmup": 0}])
def test_without_a_warm_up_or_a_repeat_there_is_no_figure(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        bench.latency(lambda: None, **wrong)


def test_models_see_the_same_batches_below_both_vocabularies():
    seen = {"teacher": [], "student": []}

    def model(name):
        def keep(tokens, lengths):
            seen[name].append((np.array(tokens), np.array(lengths)))

        def apply(params, tokens, lengths, token_types=None, *, key=None, dtype=jnp.float32):
            jax.debug.callback(keep, tokens, lengths)
            return EncoderOutput({}, params["table"][tokens])

        return apply

    teacher = (model("teacher"), {"table": jnp.ones((50, 3))})
    student = (model("student"), {"table": np.ones((7, 3), np.float32)})
    found = bench.models_latency(
        teacher, student, vocab_sizes=(50, 7), shapes=((4, 8), (1, 8)), repeats=2, warmup=1
    )
    jax.effects_barrier()
    assert list(found) == ["4x8", "1x8"]
    assert found["4x8"]["teacher"]["repeats"] == 2
    assert len(seen["teacher"]) == len(seen["student"]) == 6
    for mine, its in zip(seen["teacher"], seen["student"], strict=True):
        np.testing.assert_array_equal(mine[0], its[0])
        np.testing.assert_array_equal(mine[1], np.full(len(mine[0]), 8))
        assert mine[0].max() < 7
        assert mine[0].dtype == np.int32
    assert len(np.unique(seen["teacher"][0][0])) > 1


def test_parameters_spread_over_a_mesh_are_timed_on_one_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = {"table": jax.device_put(jnp.ones((8, 3)), place)}

    def apply(params, tokens, lengths):
        return EncoderOutput({}, params["table"][tokens])

    model = (apply, params)
    found = bench.models_latency(
        model, model, vocab_sizes=(8, 8), shapes=((2, 4),), repeats=1, warmup=1
    )
    assert found["2x4"]["ratio"] > 0
