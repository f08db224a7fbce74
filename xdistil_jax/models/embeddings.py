"""A small embedding table from the teacher's large one."""

import numpy as np
from jaxtyping import Float


def svd_table(
    table: Float[np.ndarray, "V D"], rank: int, *, rows: int = 16384
) -> Float[np.ndarray, "V E"]:
    """Left singular vectors times singular values: the best table of ``rank`` columns.

    The right vectors come from the D x D Gram matrix in float64, ``rows`` rows at a time, so that
    119,547 x 768 takes seconds. A column's sign is the one that makes the largest entry of its
    right vector positive.

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
    return (table @ (right * np.sign(peaks)).astype(np.float32)).astype(np.float32)
