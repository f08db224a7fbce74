"""Sizes and times: parameters, latency of teacher and student on the same batches."""

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from xdistil_jax.compilation import named
from xdistil_jax.types import EncoderOutput, Params

Call = Callable[[], Any]
Apply = Callable[..., EncoderOutput]


class Latency(NamedTuple):
    """Milliseconds of one call, over ``repeats`` timed calls."""

    median_ms: float
    p90_ms: float
    repeats: int


class Comparison(NamedTuple):
    """Two calls timed in turn; ``ratio`` says how many times faster the student is."""

    teacher: Latency
    student: Latency
    ratio: float

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "teacher": self.teacher._asdict(),
            "student": self.student._asdict(),
            "ratio": self.ratio,
        }


def parameters(params: Any) -> int:
    """Number of parameters of a tree of arrays, or of their shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def _times(
    calls: Sequence[Call], *, repeats: int, warmup: int, budget_s: float | None
) -> list[Latency]:
    """Time the calls in turn, so that noise hits all of them."""
    if repeats < 1 or warmup < 1:
        raise ValueError(
            f"expected repeats and warmup of at least 1, found {repeats} and {warmup}: "
            "the first call compiles and is never timed"
        )
    begun = perf_counter()

    def spent() -> bool:
        return budget_s is not None and perf_counter() - begun >= budget_s

    for number in range(warmup):
        if number and spent():
            break
        for call in calls:
            jax.block_until_ready(call())
    seconds: list[list[float]] = []
    for number in range(repeats):
        if number and spent():
            break
        row = []
        for call in calls:
            start = perf_counter()
            jax.block_until_ready(call())
            row.append(perf_counter() - start)
        seconds.append(row)
    return [
        Latency(1e3 * float(np.median(column)), 1e3 * float(np.percentile(column, 90)), len(column))
        for column in zip(*seconds, strict=True)
    ]


def latency(
    call: Call, *, repeats: int = 30, warmup: int = 3, budget_s: float | None = None
) -> Latency:
    """Time one call. ``warmup`` calls, the first of which compiles, are not counted.

    Once ``budget_s`` is used up no further call begins; one warm-up and one timed call always do.
    """
    return _times([call], repeats=repeats, warmup=warmup, budget_s=budget_s)[0]


def compare(
    teacher_call: Call,
    student_call: Call,
    *,
    repeats: int = 30,
    warmup: int = 3,
    budget_s: float | None = None,
) -> Comparison:
    """Time two calls in turn, as ``latency`` does."""
    calls = [teacher_call, student_call]
    teacher, student = _times(calls, repeats=repeats, warmup=warmup, budget_s=budget_s)
    return Comparison(teacher, student, teacher.median_ms / max(student.median_ms, 1e-9))


@partial(jax.jit, static_argnames="apply")
@named("latency")
def _logits(
    apply: Apply, params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> Float[Array, "B T C"]:
    return apply(params, tokens, lengths).logits


def models_latency(
    teacher: tuple[Apply, Params],
    student: tuple[Apply, Params],
    *,
    vocab_sizes: tuple[int, int],
    shapes: Sequence[tuple[int, int]] = ((32, 32), (1, 32)),
    repeats: int = 30,
    warmup: int = 3,
    budget_s: float = 30.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Forward passes to the logits of both models on the same random batches, on one device.

    Gives ``{"32x32": {"teacher": {...}, "student": {...}, "ratio": ...}, "1x32": ...}``. The budget
    is shared among the shapes and covers compilation, though no figure contains it.
    """
    device = jax.local_devices()[0]
    # By way of the host: of several processes only one may time them.
    models = [
        (apply, jax.device_put(jax.tree.map(np.asarray, params), device))
        for apply, params in (teacher, student)
    ]
    random = np.random.default_rng(seed)
    end = perf_counter() + budget_s
    found = {}
    for number, (rows, width) in enumerate(shapes):
        tokens = random.integers(0, min(vocab_sizes), (rows, width), np.int32)
        batch = jax.device_put((tokens, np.full(rows, width, np.int32)), device)
        calls = [partial(_logits, apply, params, *batch) for apply, params in models]
        share = max(end - perf_counter(), 0.0) / (len(shapes) - number)
        timed = compare(*calls, repeats=repeats, warmup=warmup, budget_s=share)
        found[f"{rows}x{width}"] = timed.to_json()
    return found
