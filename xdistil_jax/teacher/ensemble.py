"""Several teachers as one: their logits averaged as log-probabilities, their states of one or all.

Each keeps a cache of its own; they meet when a batch is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from xdistil_jax.data.encode import EncodedStore, pieces
from xdistil_jax.models.embeddings import svd_directions
from xdistil_jax.teacher.source import Teacher
from xdistil_jax.types import Batch, EncoderOutput

States = Literal["first", "concatenated"]
LAYER = "ensemble"
_SAMPLED_PIECES = 20_000


class Lookup(Protocol):
    """See ``teacher.source.Teacher.lookup``."""

    def __call__(self, arrays: PyTree, streamed: PyTree, batch: Batch) -> EncoderOutput: ...


def mix_logits(
    logits: Sequence[Float[Array, "*B C"]], weights: Sequence[Float[Array, "*B"]]
) -> Float[Array, "*B C"]:
    """Σ wₘ log softmax(rₘ): the logits of the normalised geometric mean of the distributions."""
    parts = zip(logits, weights, strict=True)
    return sum(weight[..., None] * jax.nn.log_softmax(each) for each, weight in parts)


@dataclass(frozen=True)
class EnsembleLookup:
    """Combines what the members' lookups give; runs inside ``jit``."""

    members: tuple[Lookup, ...]
    states: States

    def __call__(self, arrays: PyTree, streamed: PyTree, batch: Batch) -> EncoderOutput:
        parts = zip(self.members, arrays["members"], streamed["members"], strict=True)
        outputs = [lookup(array, stream, batch) for lookup, array, stream in parts]
        weights = jnp.moveaxis(streamed["weights"], -1, 0)[..., None]
        logits = mix_logits([each.logits for each in outputs], list(weights))
        if self.states == "first":
            return EncoderOutput(outputs[0].hidden, logits)
        every = [state for each in outputs for state in each.hidden.values()]
        states = jnp.concatenate(every, axis=-1)
        if arrays["directions"] is not None:
            mean = jnp.expand_dims(arrays["mean"], tuple(range(states.ndim - 1)))
            states = (states - mean) @ arrays["directions"]
        return EncoderOutput({LAYER: states} if every else {}, logits)


@dataclass(frozen=True, eq=False)
class EnsembleTeacher:
    """Teachers of the rows of one store.

    ``weights`` has a row for each language of the store, and sums to 1 over the members.
    ``directions`` [D', D] are the principal ones of all members' states, or None: left as they are.
    """

    members: tuple[Teacher, ...]
    store: EncodedStore
    weights: Float[np.ndarray, "G M"]
    states: States = "first"
    mean: Float[np.ndarray, "D2"] | None = None
    directions: Float[np.ndarray, "D2 D"] | None = None

    @property
    def words_only(self) -> bool:
        """Where one speaks of words only, all are heard at words."""
        return any(member.words_only for member in self.members)

    @property
    def arrays(self) -> dict[str, Any]:
        """The members' arrays, and the projection of the states."""
        members = tuple(member.arrays for member in self.members)
        return {"members": members, "mean": self.mean, "directions": self.directions}

    @property
    def lookup(self) -> EnsembleLookup:
        """The pure function that combines them."""
        return EnsembleLookup(tuple(member.lookup for member in self.members), self.states)

    def stream(self, rows: Int[np.ndarray, "*K B"], width: int) -> dict[str, Any]:
        """What the members stream, and the weights [*K B M] of each row's language."""
        language = np.where(rows >= 0, self.store.language[rows], 0)
        members = tuple(member.stream(rows, width) for member in self.members)
        return {"members": members, "weights": self.weights[language].astype(np.float32)}


def combine(
    members: Sequence[Teacher],
    store: EncodedStore,
    weights: Float[np.ndarray, "G M"],
    *,
    states: States = "first",
    width: int = 0,
) -> EnsembleTeacher:
    """``members``, each bound to the rows of ``store``, as one teacher.

    ``weights`` has a row for each language of the store. With concatenated states ``width`` of
    their principal directions are kept (0: all of them as they are).

    Raises:
        ValueError: for more directions than there are.
    """
    teacher = EnsembleTeacher(tuple(members), store, weights, states)
    if states == "first" or not width:
        return teacher
    sample = _sampled_states(teacher, store)
    if width > sample.shape[1]:
        raise ValueError(
            f"ensemble.width is {width}, but the states have {sample.shape[1]} coordinates in all"
        )
    mean = sample.mean(0)
    directions = svd_directions(sample - mean, width)
    return EnsembleTeacher(tuple(members), store, weights, states, mean, directions)


def normalised(weights: Sequence[float], members: int) -> tuple[float, ...]:
    """Weights that sum to 1; empty ones are equal.

    Raises:
        ValueError: if there are more or fewer than teachers, or they don't add up to something.
    """
    weights = tuple(weights) or (1.0,) * members
    if len(weights) != members or min(weights) < 0 or not sum(weights):
        raise ValueError(
            f"ensemble weights {', '.join(f'{w:g}' for w in weights)}: expected {members} numbers, "
            "one for each teacher, none of them negative and not all zero"
        )
    return tuple(weight / sum(weights) for weight in weights)


def _sampled_states(teacher: EnsembleTeacher, store: EncodedStore) -> Float[np.ndarray, "N D2"]:
    """The concatenated states of some pieces, from rows all over the store."""
    step = max(1, int(store.lengths.sum()) // _SAMPLED_PIECES)
    found = []
    for row in range(0, store.rows, step):
        rows, width = np.array([row]), int(store.lengths[row])
        index, real = pieces(store, rows, width)
        heard = real & (store.word[index] >= 0) & store.owned[index] if teacher.words_only else real
        output = teacher.lookup(teacher.arrays, teacher.stream(rows, width), None)
        found.append(np.asarray(output.hidden[LAYER])[heard])
    return np.concatenate(found)
