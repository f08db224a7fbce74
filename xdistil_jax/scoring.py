"""Tags from logits, and exact counts (spans: equal to seqeval's default mode), without the host.

All words of a data set lie in one flat array; an entity is decided by where it starts, its kind and
where it ends, so counting is a scan for ends and three sums. Axes: N words, C tags, S sentences, G
languages.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def best_tags(
    logits: Float[Array, "N C"],
    starts: Int[Array, "S"],
    sizes: Int[Array, "S"],
    follows: Bool[Array | np.ndarray, "C C"],
) -> Int[Array, "N"]:
    """Of all sequences that ``follows`` allows the one with the highest sum of logits (Viterbi).

    Sentence s is the words ``starts[s]`` up to ``starts[s] + sizes[s]``; ``follows`` is that of
    ``labels.TagSet``. As long a loop as the longest sentence, over all sentences at once. Without
    normalising: a constant added to all tags of a word changes no choice.
    """
    follows = jnp.asarray(follows)
    longest = jnp.max(sizes, initial=0)

    def word(at: Array) -> Array:
        """The place of each sentence's word number ``at``, or N where it has none."""
        return jnp.where(at < sizes, starts + at, logits.shape[0])

    def forth(at: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        score, origins = carry
        before = jnp.where(follows, score[:, :, None], -jnp.inf)
        # Differences decide: beside the sum over a long sentence they would drown in rounding.
        here = before.max(1) - score.max(1, keepdims=True) + logits.at[word(at)].get(mode="clip")
        origins = origins.at[word(at)].set(before.argmax(1).astype(origins.dtype), mode="drop")
        return jnp.where((at < sizes)[:, None], here, score), origins

    def back(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        tag, path = carry
        at = longest - 1 - step
        path = path.at[word(at)].set(tag, mode="drop")
        before = origins.at[word(at)].get(mode="clip")
        before = jnp.take_along_axis(before, tag[:, None], axis=1)[:, 0].astype(tag.dtype)
        return jnp.where(at < sizes, before, tag), path

    after_outside = jnp.where(jnp.arange(logits.shape[1]) == 0, 0.0, -jnp.inf)
    score = jnp.broadcast_to(after_outside, (len(starts), logits.shape[1])).astype(logits.dtype)
    none = jnp.zeros(logits.shape, jnp.int16)
    score, origins = jax.lax.fori_loop(0, longest, forth, (score, none))
    tag, path = score.argmax(1), jnp.zeros(logits.shape[0], score.argmax(1).dtype)
    return jax.lax.fori_loop(0, longest, back, (tag, path))[1]


class SpanCounts(NamedTuple):
    """Entities of each language: found and right, found, and present."""

    correct: Int[Array, "G"]
    predicted: Int[Array, "G"]
    gold: Int[Array, "G"]

    def merge(self, other: "SpanCounts") -> "SpanCounts":
        """The counts over both; a sentence must lie whole in one of them."""
        return SpanCounts(*(mine + its for mine, its in zip(self, other, strict=True)))


def _spans(
    tags: Int[Array, "N"],
    first: Bool[Array, "N"],
    counted: Bool[Array, "N"],
    begins: Bool[Array, "C"],
    kinds: Int[Array, "C"],
) -> tuple[Bool[Array, "N"], Int[Array, "N"], Int[Array, "N"]]:
    """Does an entity start at this word, of which kind, and where would it end (exclusive)?"""
    size = tags.shape[0]
    tagged = counted & (tags >= 0)
    kind = jnp.where(tagged, kinds[tags], -1)
    previous = jnp.concatenate([jnp.full((1,), -1, kind.dtype), kind[:-1]])
    breaks = first | (tagged & begins[tags]) | (kind != previous)
    position = jnp.arange(size, dtype=jnp.int32)
    here_or_later = jax.lax.cummin(jnp.where(breaks, position, size), reverse=True)
    end = jnp.concatenate([here_or_later[1:], jnp.full((1,), size, jnp.int32)])
    return breaks & (kind >= 0), kind, end


def span_counts(
    predicted: Int[Array, "N"],
    gold: Int[Array, "N"],
    first: Bool[Array, "N"],
    group: Int[Array, "N"],
    begins: Bool[Array | np.ndarray, "C"],
    kinds: Int[Array | np.ndarray, "C"],
    *,
    groups: int,
) -> SpanCounts:
    """Count the entities of a flat array of words; pure, ``groups`` is static.

    ``first`` marks the first word of each sentence, ``group`` its language (-1: padding, which
    is not counted and ends an entity); ``begins`` and ``kinds`` are those of ``labels.TagSet``.
    A word without a tag (-1) is outside, as O is. N must be at least 1.
    """
    counted = group >= 0
    table = jnp.asarray(begins), jnp.asarray(kinds)
    starts, kind, end = _spans(predicted, first, counted, *table)
    gold_starts, gold_kind, gold_end = _spans(gold, first, counted, *table)
    correct = starts & gold_starts & (kind == gold_kind) & (end == gold_end)

    def total(found: Bool[Array, "N"]) -> Int[Array, "G"]:
        return jax.ops.segment_sum(found.astype(jnp.int32), group, groups)

    return SpanCounts(total(correct), total(starts), total(gold_starts))


def class_counts(
    predicted: Int[Array, "S"], gold: Int[Array, "S"], group: Int[Array, "S"], *, groups: int
) -> SpanCounts:
    """Texts of each language as counts of spans: each text is one entity, so F1 is accuracy.

    ``group`` is each text's language (-1: not counted); pure, ``groups`` is static.
    """

    def total(found: Bool[Array, "S"]) -> Int[Array, "G"]:
        return jax.ops.segment_sum(found.astype(jnp.int32), group, groups)

    texts = total(group >= 0)
    return SpanCounts(total(predicted == gold), texts, texts)


def f1(counts: SpanCounts) -> Float[Array, "G"]:
    """F1 of each language between 0 and 1; 0 where there is no entity at all."""
    entities = counts.predicted + counts.gold
    return 2.0 * counts.correct / jnp.maximum(entities, 1)


def language_mean(counts: SpanCounts) -> Float[Array, ""]:
    """Mean F1 of the languages that have gold entities; 0 if none has."""
    defined = counts.gold > 0
    total = jnp.sum(jnp.where(defined, f1(counts), 0.0))
    return total / jnp.maximum(jnp.sum(defined), 1)
