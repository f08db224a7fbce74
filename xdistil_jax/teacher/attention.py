"""A cache that also attends: states are read, attention is computed anew in the step.

Attention takes heads × length numbers a piece, too many to cache. It comes from the teacher's own
forward pass inside the program; in a stage whose losses don't read it the compiler drops the pass.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, PyTree

from xdistil_jax.teacher.ensemble import Lookup
from xdistil_jax.teacher.source import OnlineLookup, OnlineTeacher, Teacher
from xdistil_jax.types import Batch, EncoderOutput


@dataclass(frozen=True)
class AttentiveLookup:
    """What the cache says, with the attention of the forward pass."""

    states: Lookup
    online: OnlineLookup

    def __call__(self, arrays: PyTree, streamed: PyTree, batch: Batch) -> EncoderOutput:
        said = self.states(arrays["states"], streamed, batch)
        return said._replace(attention=self.online(arrays["online"], (), batch).attention)


@dataclass(frozen=True, eq=False)
class AttentiveTeacher:
    """``states`` as it is, and the attention of ``online``, which cuts text as the student does."""

    states: Teacher
    online: OnlineTeacher

    @property
    def words_only(self) -> bool:
        """As its states."""
        return self.states.words_only

    @property
    def arrays(self) -> dict[str, Any]:
        """Of both: the teacher's parameters stay on the devices."""
        return {"states": self.states.arrays, "online": self.online.arrays}

    @property
    def lookup(self) -> AttentiveLookup:
        """The pure function that combines them."""
        return AttentiveLookup(self.states.lookup, self.online.lookup)

    def stream(self, rows: Int[np.ndarray, "*K B"], width: int) -> PyTree:
        """What the states stream."""
        return self.states.stream(rows, width)
