"""A small embedding table from a large one: the rows of Table 7."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from xdistil_jax.types import Params

How = Literal["svd", "pca", "ppa", "projected", "full", "vectors"]


def svd_directions(
    table: Float[np.ndarray, "V D"], rank: int, *, rows: int = 16384
) -> Float[np.ndarray, "D E"]:
    """The first right singular vectors: ``table @ directions`` is the truncated SVD of a table.

    From the D x D Gram matrix in float64, ``rows`` rows at a time, so that 119,547 x 768 takes
    seconds. A column's sign is the one that makes its largest entry positive.

    Raises:
        ValueError: if ``rank`` is not within 1 … min(V, D).
    """
    table = np.asarray(table)
    if not 1 <= rank <= min(table.shape):
        raise ValueError(f"rank {rank} of a table {table.shape}: expected 1 to {min(table.shape)}")
    gram = np.zeros((table.shape[1], table.shape[1]))
    for start in range(0, len(table), rows):
        block = table[start : start + rows].astype(np.float64)
        gram += block.T @ block
    _, vectors = np.linalg.eigh(gram)
    right = vectors[:, ::-1][:, :rank]
    peaks = right[np.abs(right).argmax(0), np.arange(rank)]
    return (right * np.sign(peaks)).astype(np.float32)


def reduced(
    table: Float[np.ndarray, "V D"], rank: int, how: How, *, removed: int = 0
) -> Float[np.ndarray, "V E"]:
    """``table`` brought to ``rank`` columns; ``full`` and ``vectors`` leave it as it is.

    ``svd`` is its truncated SVD, left singular vectors times singular values; ``pca`` the same of
    the table less its mean row. ``ppa`` also takes out the first directions before and after
    (Raunak et al. 2019, algorithm 2); of how many, see ``without_first``.

    Raises:
        ValueError: for a rank, or a number of directions, that the table hasn't.
    """
    if how in ("full", "vectors"):
        return np.asarray(table, np.float32)
    if how == "ppa":
        small = reduced(without_first(table, removed), rank, "pca")
        return without_first(small, removed)
    if how == "pca":
        table = _centred(table)
    return table @ svd_directions(table, rank)


def without_first(table: Float[np.ndarray, "V D"], removed: int = 0) -> Float[np.ndarray, "V D"]:
    """``table`` less its mean row and its first ``removed`` principal directions.

    "All but the top" (Mu and Viswanath 2018, algorithm 1); 0: their D / 100, at least one.

    Raises:
        ValueError: if that leaves nothing.
    """
    width = table.shape[1]
    removed = removed or max(1, round(width / 100))
    if removed >= width:
        raise ValueError(f"{removed} directions taken out of {width}: expected fewer")
    table = _centred(table)
    first = svd_directions(table, removed)
    return table - (table @ first) @ first.T


def _centred(table: Float[np.ndarray, "V D"]) -> Float[np.ndarray, "V D"]:
    return (table - table.mean(0, dtype=np.float64)).astype(np.float32)


def start_embedding(
    params: Params, table: Float[np.ndarray, "V D"], *, scale: float, how: How, removed: int = 0
) -> Params:
    """A student's parameters whose embedding starts from ``table``: see ``reduced``.

    It is brought to the standard deviation ``scale`` (0: as it is). ``projected`` is the truncated
    SVD, too, but as ``table @ directions``, of which the directions are trained: see
    ``join_embedding``.
    """
    rank = params["embed"]["table"].shape[1]
    if how != "projected":
        start = reduced(table, rank, how, removed=removed)
        return {**params, "embed": {**params["embed"], "table": start * _factor(start, scale)}}
    directions = svd_directions(table, rank)
    start = table @ directions
    factored = {"table": np.zeros_like(start), "projection": directions * _factor(start, scale)}
    embed = {**params["embed"], **factored}
    return {**params, "embed": embed, "source": {"table": np.asarray(table, np.float32)}}


def _factor(start: Float[np.ndarray, "V E"], scale: float) -> np.float32:
    return np.float32(scale / start.std() if scale else 1.0)


def join_embedding(params: Params) -> Params:
    """The same student with one table: source @ projection + table."""
    if "source" not in params:
        return params
    embed, source = dict(params["embed"]), params["source"]["table"]
    joined = np.asarray(source) @ np.asarray(embed.pop("projection")) + np.asarray(embed["table"])
    others = {name: tree for name, tree in params.items() if name != "source"}
    return {**others, "embed": {**embed, "table": joined}}
