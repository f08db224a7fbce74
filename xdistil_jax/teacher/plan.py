"""Which rows go into which shard and batch: decided, and on disk, before anything is computed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from xdistil_jax.teacher.shards import Ledger, Planned, Sealed, locate

# A reader holds a file open for each array of each shard: a large build gets larger shards.
_MOST_SHARDS = 256


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


def claim(
    ledger: Ledger, lacking: Shaped[np.ndarray, "N"]
) -> tuple[list[Planned], Bool[np.ndarray, "N"]]:
    """The shards of earlier plans that are to be built now, and which of ``lacking`` they leave.

    ``lacking`` is sorted. A planned shard counts only if all of its rows are lacking: the same
    command goes on with the same shards, and a smaller one computes only what it was asked for.
    """
    left = np.ones(len(lacking), bool)
    claimed = []
    for planned in ledger.planned:
        place = locate(lacking, planned.keys)
        if planned.number not in ledger.shards and (place >= 0).all() and left[place].all():
            left[place] = False
            claimed.append(planned)
    return claimed, left


def write_plan(
    ledger: Ledger,
    row_keys: Shaped[np.ndarray, "R"],
    lengths: Int[np.ndarray, "R"],
    cuts: Sequence[Cut],
    *,
    bytes_per_token: int,
    shard_bytes: int,
    token_budget: int,
) -> None:
    """Put whole batches together to shards of about ``shard_bytes``, and write that down."""
    total = bytes_per_token * int(lengths.sum())
    limit = max(shard_bytes, total // _MOST_SHARDS)
    shard = np.empty(len(lengths), np.int32)
    number, size = ledger.next_shard, 0
    for cut in cuts:
        if size >= limit:
            number, size = number + 1, 0
        shard[cut.start : cut.stop] = number
        size += bytes_per_token * int(lengths[cut.start : cut.stop].sum())
    arrays = {"hashes": row_keys.view("<u8").reshape(-1, 2), "shard": shard}
    path = ledger.folder / "plans" / f"{ledger.next_plan:06d}" / "plan.json"
    Sealed.write(path, arrays, {"token_budget": token_budget})
