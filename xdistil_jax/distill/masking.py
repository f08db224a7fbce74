"""Masked language modelling: which words are hidden, and the loss of guessing them.

What is hidden is a function of (key of the step, row), computed inside the program: so it is new in
each step, equal on any number of devices, and equal after a run was resumed.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from xdistil_jax.types import Batch, EncoderOutput, Masked, Mean

# Words that don't fit what is left of a row's share are passed over; so many at most.
_PASSED_OVER = 4
# What is held out has no step: there the row alone decides.
_HELD_OUT = 0x4E1D
# Told apart from the keys of dropout, which are split from the key of the step.
_PURPOSE = 0x3A5C


@dataclass(frozen=True)
class Masking:
    """Whole-word masking (Devlin et al. 2018): ``rate`` of a row's pieces, word by word.

    A hidden piece becomes ``mask_id`` in 80 % of the cases, any ordinary one of the ``vocab_size``
    pieces in 10 %, and stays in 10 %. The pieces in ``special`` are never hidden, nor put in.
    """

    mask_id: int
    special: tuple[int, ...]
    vocab_size: int
    rate: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"a masking rate of {self.rate}: expected a share between 0 and 1")
        if len(set(self.special)) >= self.vocab_size:
            raise ValueError("the vocabulary has special pieces only: there is nothing to guess")

    def most(self, width: int) -> int:
        """The greatest number of pieces that are hidden in a row of ``width``."""
        return max(1, math.ceil(self.rate * width))

    def __call__(self, batch: Batch, key: Array | None) -> Batch:
        """``batch`` with pieces hidden, and what they were in ``masked``.

        ``key`` is that of the step; without one the rows alone decide.
        """
        key = jax.random.key(_HELD_OUT) if key is None else jax.random.fold_in(key, _PURPOSE)
        T = batch.tokens.shape[1]
        bits = jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row), (3, T)))(
            batch.rows.astype(jnp.uint32)
        )
        hidden = self.chosen(batch, bits[:, 0])
        tokens = jnp.where(
            hidden, self._instead(batch.tokens, bits[:, 1], bits[:, 2]), batch.tokens
        )
        # Hidden pieces first, in their order.
        places = jnp.argsort(~hidden, axis=1, stable=True)[:, : self.most(T)].astype(jnp.int32)
        masked = Masked(
            places,
            jnp.take_along_axis(batch.tokens, places, axis=1),
            jnp.take_along_axis(hidden, places, axis=1),
        )
        return batch._replace(tokens=tokens, masked=masked)

    def chosen(self, batch: Batch, bits: UInt32[Array, "B T"]) -> Bool[Array, "B T"]:
        """The hidden pieces: words in a random order, while they fit the row's share of pieces."""
        T = batch.tokens.shape[1]
        place = jnp.arange(T, dtype=jnp.int32)[None]
        begin = jax.lax.cummax(jnp.where(batch.word_start, place, -1), axis=1)
        free = (place < batch.lengths[:, None]) & (begin >= 0)
        for number in self.special:
            free &= batch.tokens != number
        score = jnp.take_along_axis(bits, jnp.maximum(begin, 0), axis=1)
        size = free.sum(1, keepdims=True)
        share = jnp.round(self.rate * size).astype(jnp.int32)
        share = jnp.where(size > 0, jnp.clip(share, 1, self.most(T)), 0)
        # No sorting: a word's turn is over when the pieces of all words up to it are counted.
        earlier = score[:, None, :] <= score[:, :, None]
        last = jnp.uint32(0xFFFFFFFF)
        for _ in range(_PASSED_OVER):
            over = free & ((earlier & free[:, None]).sum(-1) > share)
            first = jnp.where(over, score, last).min(1, keepdims=True)
            free &= ~(over & (score == first))
        return free & ((earlier & free[:, None]).sum(-1) <= share)

    def _instead(
        self, tokens: Int[Array, "B T"], bits: UInt32[Array, "B T"], other: UInt32[Array, "B T"]
    ) -> Int[Array, "B T"]:
        special = sorted(set(self.special))
        any_piece = (other % jnp.uint32(self.vocab_size - len(special))).astype(tokens.dtype)
        for number in special:
            any_piece += any_piece >= number
        tenth = bits % jnp.uint32(10)
        kept = jnp.where(tenth == 8, any_piece, tokens)
        return jnp.where(tenth < 8, jnp.asarray(self.mask_id, tokens.dtype), kept)


def masked_language_model(
    student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch
) -> Mean:
    """Mean over hidden pieces of −log p(piece); ``student.logits`` are [B M V], at ``masked``.

    Raises:
        ValueError: for a batch in which nothing is hidden.
    """
    if batch.masked is None:
        raise ValueError("the loss mlm needs a masked batch: give the Model a Masking")
    masked = batch.masked
    logits: Float[Array, "B M V"] = jnp.where(masked.mask[..., None], student.logits, 0.0)
    right = jnp.take_along_axis(logits, masked.pieces[..., None], axis=-1)[..., 0]
    return Mean.of(jax.nn.logsumexp(logits, axis=-1) - right, masked.mask)
