"""Which students fit: random weights of many sizes, timed on this machine."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from xdistil_jax import trees
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.functional import abstract_params, build
from xdistil_jax.report.bench import latency
from xdistil_jax.students import StudentSpec

SIZES = {
    "bilstm": tuple(
        (embed, hidden) for embed in (50, 100, 200, 300) for hidden in (100, 200, 400, 600)
    ),
    "transformer": (
        *((48, 2), (96, 2), (144, 1), (132, 2), (204, 2), (252, 2), (228, 3), (276, 3)),
        *((256, 6), (384, 6), (384, 12)),
    ),
}
"""By kind of student: (E, H) of BiLSTMs, the sixteen of Table 16; (width, layers) of transformers,
eight of Table 15 and the three that were published."""
NAMES = {"bilstm": ("E", "H"), "transformer": ("width", "layers")}
# The table of pieces is read row by row: how many it has changes its size, and no time.
_ROWS = 1000


class Candidate(NamedTuple):
    """A student: megabytes (10^6 bytes) in fp32 and int8, and ms for a batch of 1 × 32 pieces."""

    size: tuple[int, int]
    parameters: int
    fp32_mb: float
    int8_mb: float
    ms: float


def candidates(
    spec: StudentSpec, sizes: Sequence[tuple[int, int]], *, repeats: int = 30
) -> Iterator[Candidate]:
    """``spec`` in other sizes, as deployed, each timed as soon as it is asked for.

    fp32 weights are drawn. In int8 a weight is taken as a byte; a bias, or the scale of a norm, as
    four.
    """
    for size in sizes:
        sized = _sized(spec, *size)
        leaves = list(trees.leaves(abstract_params(sized)))
        count = sum(leaf.size for _, leaf in leaves)
        whole = sum(leaf.size for path, leaf in leaves if path.endswith(("/bias", "/scale")))
        bytes8 = count + 3 * whole
        yield Candidate(size, count, count * 4e-6, bytes8 * 1e-6, _time(sized, repeats))


def heads_of(width: int) -> int:
    """Twelve, or heads of 32 where the width is no multiple of that."""
    return 12 if width % 12 == 0 else width // 32


def _sized(spec: StudentSpec, first: int, second: int) -> StudentSpec:
    """``spec`` in another size, without what only its training needs."""
    if isinstance(spec, BiLSTMSpec):
        return replace(spec, embed=first, hidden=second, also=(), source_width=0)
    own = replace(
        spec.encoder, width=first, layers=second, heads=heads_of(first), feed_forward=4 * first,
        embedding_width=0,
    )  # fmt: skip
    return replace(spec, encoder=own, imitates=(), attends=(), source_width=0)


def vocabulary(spec: StudentSpec) -> int:
    """How many pieces it has."""
    return spec.vocab_size if isinstance(spec, BiLSTMSpec) else spec.encoder.vocab_size


def projected(spec: StudentSpec) -> str:
    """What else counts, in words: a transformer is deployed without its projections."""
    return f" and width {spec.teacher_width}" if isinstance(spec, BiLSTMSpec) else ""


def _few_rows(spec: StudentSpec) -> StudentSpec:
    rows = min(vocabulary(spec), _ROWS)
    if isinstance(spec, BiLSTMSpec):
        return replace(spec, vocab_size=rows)
    return replace(spec, encoder=replace(spec.encoder, vocab_size=rows))


def _time(spec: StudentSpec, repeats: int) -> float:
    """Median milliseconds of 1 row of 32 pieces, compilation apart."""
    small = _few_rows(spec)
    functional, random = build(small), np.random.default_rng(0)
    device = jax.local_devices()[0]
    drawn = jax.tree.map(
        lambda leaf: random.normal(0, 0.1, leaf.shape).astype(leaf.dtype), abstract_params(small)
    )
    params = jax.device_put(drawn, device)
    tokens = random.integers(0, vocabulary(small), (1, 32), np.int32)
    batch = jax.device_put((tokens, np.full(1, 32, np.int32)), device)
    logits = jax.jit(lambda params, *batch: functional.apply(params, *batch).logits)
    return latency(partial(logits, params, *batch), repeats=repeats).median_ms


def describe(
    found: Sequence[Candidate], names: tuple[str, str], max_mb: float, max_ms: float
) -> list[tuple[str, ...]]:
    """Rows of a table, the smallest first; the last column says in which form one fits."""
    rows = [(*names, "parameters", "fp32 MB", "int8 MB", "ms", "fits")]
    for each in sorted(found, key=lambda candidate: candidate.parameters):
        forms = (("fp32", each.fp32_mb), ("int8", each.int8_mb))
        fits = [name for name, size in forms if size <= max_mb and each.ms <= max_ms]
        rows.append(
            (
                *map(str, each.size), f"{each.parameters / 1e6:.2f}M",
                *(f"{each.fp32_mb:.1f}", f"{each.int8_mb:.1f}", f"{each.ms:.2f}"),
                " ".join(fits),
            )
        )  # fmt: skip
    return rows
