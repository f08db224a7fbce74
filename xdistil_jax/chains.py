"""Many sentences, step by step: what goes word for word costs a step for the longest, not for all.

NumPy alone: runs without JAX.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int


class Steps(NamedTuple):
    """Sentences that go on together, the long ones first; those that have ended are the last rows.

    ``at`` [W]: the words in the order of the steps. ``parts``: of these, the first word of all
    sentences, the second of those that have one, and so on.
    """

    at: Int[np.ndarray, "W"]
    parts: list[slice]


def align(starts: Int[np.ndarray, "S"], sizes: Int[np.ndarray, "S"]) -> Steps:
    """The steps of sentences that begin at these words and have so many."""
    order = np.argsort(-sizes, kind="stable")
    starts, sizes = starts[order], sizes[order]
    numbers = np.arange(int(sizes.max(initial=0)))
    alive = np.searchsorted(-sizes, -numbers, "left")
    edges = np.concatenate([[0], np.cumsum(alive)])
    step = np.repeat(numbers, alive)
    at = starts[np.arange(edges[-1]) - edges[step]] + step
    return Steps(at, [slice(first, end) for first, end in pairwise(edges.tolist())])
