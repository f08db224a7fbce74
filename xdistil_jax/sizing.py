"""Which students fit: random weights of many sizes, timed on this machine."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from xdistil_jax.models.bilstm import BiLSTMSpec, parameter_count
from xdistil_jax.models.functional import abstract_params, build
from xdistil_jax.report.bench import latency

SIZES = tuple((embed, hidden) for embed in (50, 100, 200, 300) for hidden in (100, 200, 400, 600))
"""(E, H), around those of the paper: 50 × 200 to 300 × 600."""
# The table of pieces is read row by row: how many it has changes its size, and no time.
_ROWS = 1000


class Candidate(NamedTuple):
    """A student: megabytes (10^6 bytes) in fp32 and int8, and ms for a batch of 1 × 32 pieces."""

    embed: int
    hidden: int
    parameters: int
    fp32_mb: float
    int8_mb: float
    ms: float


def candidates(
    spec: BiLSTMSpec, sizes: Sequence[tuple[int, int]], *, repeats: int = 30
) -> Iterator[Candidate]:
    """``spec`` in other sizes, each timed as soon as it is asked for; fp32 weights are drawn.

    In int8 a weight is taken as a byte and a bias as four.
    """
    for embed, hidden in sizes:
        sized = replace(spec, embed=embed, hidden=hidden)
        count, biases = parameter_count(sized), 8 * hidden + spec.teacher_width + spec.classes
        bytes8 = count + 3 * biases
        yield Candidate(embed, hidden, count, count * 4e-6, bytes8 * 1e-6, _time(sized, repeats))


def _time(spec: BiLSTMSpec, repeats: int) -> float:
    """Median milliseconds of 1 row of 32 pieces, compilation apart."""
    small = replace(spec, vocab_size=min(spec.vocab_size, _ROWS))
    functional, random = build(small), np.random.default_rng(0)
    device = jax.local_devices()[0]
    drawn = jax.tree.map(
        lambda leaf: random.normal(0, 0.1, leaf.shape).astype(leaf.dtype), abstract_params(small)
    )
    params = jax.device_put(drawn, device)
    tokens = random.integers(0, small.vocab_size, (1, 32), np.int32)
    batch = jax.device_put((tokens, np.full(1, 32, np.int32)), device)
    logits = jax.jit(lambda params, *batch: functional.apply(params, *batch).logits)
    return latency(partial(logits, params, *batch), repeats=repeats).median_ms


def describe(found: Sequence[Candidate], max_mb: float, max_ms: float) -> list[tuple[str, ...]]:
    """Rows of a table, the smallest first; the last column says in which form one fits."""
    rows = [("E", "H", "parameters", "fp32 MB", "int8 MB", "ms", "fits")]
    for each in sorted(found, key=lambda candidate: candidate.parameters):
        forms = (("fp32", each.fp32_mb), ("int8", each.int8_mb))
        fits = [name for name, size in forms if size <= max_mb and each.ms <= max_ms]
        rows.append(
            (
                *(f"{each.embed}", f"{each.hidden}", f"{each.parameters / 1e6:.2f}M"),
                *(f"{each.fp32_mb:.1f}", f"{each.int8_mb:.1f}", f"{each.ms:.2f}"),
                " ".join(fits),
            )
        )
    return rows
