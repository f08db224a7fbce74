"""Which rows go into which shard and batch: decided, and on disk, before anything is computed."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped

from xdistil_jax.teacher.shapes import Cut
from xdistil_jax.teacher.shards import Ledger, Planned, Sealed, locate

# A reader holds a file open for each array of each shard: a large build gets larger shards.
_MOST_SHARDS = 256


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
