"""The shapes in which a teacher computes: few widths, and whole batches of rows that fit them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from xdistil_jax import sharding

# Parameters times pieces from which a CPU saves more by padding less than it spends on compiling
# more programs, half a second each.
_WORTH_WIDTHS = 1e12


class Cut(NamedTuple):
    """A batch: entries ``start`` up to ``stop`` of a list, in ``size`` rows of ``width``."""

    start: int
    stop: int
    size: int
    width: int


def padded_widths(max_length: int, *, per_octave: int = 4) -> tuple[int, ...]:
    """Widths of batches, ``per_octave`` (4, 8 or 16) to each doubling, up to ``max_length`` itself.

    Below 16 the steps are no finer: most sentences are short, and each width is a program. A
    teacher may have no position beyond the maximum.
    """
    finest = 16 // per_octave
    widths = [finest]
    while widths[-1] < max_length:
        octave = 1 << widths[-1].bit_length() - 1
        widths.append(widths[-1] + max(finest, octave // per_octave))
    return (*(width for width in widths if width < max_length), max_length)


def cut_batches(
    lengths: Int[np.ndarray, "R"], widths: Sequence[int], *, token_budget: int, multiple: int
) -> list[Cut]:
    """Cut a list that is sorted from long to short into batches; only the very last isn't full.

    A batch is as wide as its first row asks, and takes shorter rows too: as many as the budget
    allows, in a multiple of ``multiple``.
    """
    cuts = []
    start = 0
    while start < len(lengths):
        width = widths[int(np.searchsorted(widths, lengths[start]))]
        size = max(token_budget // width // multiple, 1) * multiple
        cuts.append(Cut(start, min(start + size, len(lengths)), size, width))
        start += size
    return cuts


def batch_shapes(mesh: Mesh, work: float = 0.0) -> tuple[int, int]:
    """(padded pieces of a batch, widths an octave), unless told otherwise.

    16,384 pieces for each accelerator of ``data``. A CPU computes small batches as fast as large
    ones; there much ``work`` (parameters beside the embeddings, times pieces) is cut more finely.
    """
    if sharding.platform(mesh) == "cpu":
        return 768, 16 if work > _WORTH_WIDTHS else 4
    return 16384 * mesh.shape["data"], 4


class Shapes(NamedTuple):
    """In which shapes batches are computed; ``multiple`` is the number of devices."""

    widths: tuple[int, ...]
    token_budget: int
    multiple: int

    @classmethod
    def of(cls, mesh: Mesh, max_length: int, token_budget: int | None, work: float) -> "Shapes":
        """Those of a mesh; None: the budget that suits its devices."""
        suits, per_octave = batch_shapes(mesh, work)
        widths = padded_widths(max_length, per_octave=per_octave)
        return cls(widths, suits if token_budget is None else token_budget, mesh.shape["data"])

    def cut(self, lengths: Int[np.ndarray, "R"]) -> list[Cut]:
        """Batches of rows that are sorted from long to short."""
        budget, multiple = self.token_budget, self.multiple
        return cut_batches(lengths, self.widths, token_budget=budget, multiple=multiple)
