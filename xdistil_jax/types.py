"""The nouns that cross rooms: what a batch is, what an encoder returns, how a scalar leaves a loss.

A NamedTuple may enter ``jit`` as data; a frozen dataclass is static. Axes: B rows, T pieces,
D width, C tags, L layers, V vocabulary.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Params = dict[str, Any]
"""A nested dict of arrays; a path such as ``bilstm/kernel`` names one leaf."""


class Masked(NamedTuple):
    """At most M hidden pieces of each row of a batch: where they stand, and what they were.

    Only those under ``mask`` are any.
    """

    places: Int[Array, "B M"]
    pieces: Int[Array, "B M"]
    mask: Bool[Array, "B M"]


class Batch(NamedTuple):
    """Rows of one length bucket. Each loss reads its own mask, so one step serves every mix.

    ``rows`` holds the row of the store, or -1 where the batch is filled up (length 0 there).
    ``repr_mask`` covers every real piece of a transfer row (or first ones, where the teacher speaks
    of words or of whole texts), ``logit_mask`` the pieces on which the teacher was supervised
    (first pieces), ``label_mask`` the first pieces that carry a tag.
    """

    rows: Int[Array, "B"]
    tokens: Int[Array, "B T"]
    lengths: Int[Array, "B"]
    word_start: Bool[Array, "B T"]
    labels: Int[Array, "B T"]
    label_mask: Bool[Array, "B T"]
    repr_mask: Bool[Array, "B T"]
    logit_mask: Bool[Array, "B T"]
    token_types: Int[Array, "B T"] | None = None
    masked: Masked | None = None


class EncoderOutput(NamedTuple):
    """What a teacher and a student both return.

    ``hidden`` maps a layer name (``embedding``, ``layer_1`` … ``layer_L``) to states; a student
    gives its states already projected to the teacher's width, under the name of the teacher's
    layer that they imitate, and its attention likewise. ``attention`` has, where it was asked for,
    the probabilities of each of H heads: [b, h, t, u] is what piece t makes of piece u.
    """

    hidden: dict[str, Float[Array, "B T D"]]
    logits: Float[Array, "B T C"]
    attention: dict[str, Float[Array, "B H T T"]] | None = None


class Mean(NamedTuple):
    """A mean that has not been divided yet: the only way in which a scalar leaves a loss."""

    total: Float[Array, ""]
    count: Float[Array, ""]

    def merge(self, other: "Mean") -> "Mean":
        """The mean over the union of what the two have counted."""
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> Float[Array, ""]:
        """total / count, and 0 where nothing was counted."""
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1), 0.0)

    @classmethod
    def of(cls, values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> "Mean":
        """Count the values under ``mask``; the others may hold anything, NaN included."""
        kept = jnp.where(mask, values, 0.0)
        return cls(jnp.sum(kept, dtype=jnp.float32), jnp.sum(mask, dtype=jnp.float32))
