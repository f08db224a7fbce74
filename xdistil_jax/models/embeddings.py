"""A small embedding table from the teacher's large one."""

import numpy as np
from jaxtyping import Float

from xdistil_jax.types import Params


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


def start_embedding(
    params: Params, table: Float[np.ndarray, "V D"], *, scale: float, projected: bool
) -> Params:
    """A student's parameters whose embedding starts from the teacher's ``table``.

    Its truncated SVD, left singular vectors times singular values, brought to the standard
    deviation ``scale`` (0: as it is). With ``projected``, as ``table @ directions`` of which the
    directions are trained: see ``join_embedding``.
    """
    directions = svd_directions(table, params["embed"]["table"].shape[1])
    start = table @ directions
    factor = np.float32(scale / start.std() if scale else 1.0)
    if not projected:
        return {**params, "embed": {**params["embed"], "table": start * factor}}
    factored = {"table": np.zeros_like(start), "projection": directions * factor}
    embed = {**params["embed"], **factored}
    return {**params, "embed": embed, "source": {"table": np.asarray(table, np.float32)}}


def join_embedding(params: Params) -> Params:
    """The same student with one table: source @ projection + table."""
    if "source" not in params:
        return params
    embed, source = dict(params["embed"]), params["source"]["table"]
    joined = np.asarray(source) @ np.asarray(embed.pop("projection")) + np.asarray(embed["table"])
    others = {name: tree for name, tree in params.items() if name != "source"}
    return {**others, "embed": {**embed, "table": joined}}
