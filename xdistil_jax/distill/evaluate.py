"""Figures while training: dev F1 by language inside jit, and the loss on held-out transfer text."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from xdistil_jax.compilation import named
from xdistil_jax.data.batches import Buckets, whole_rows
from xdistil_jax.data.encode import EncodedStore, pieces
from xdistil_jax.distill.feed import Feeder, Streams
from xdistil_jax.distill.stages import Loss
from xdistil_jax.distill.state import Model
from xdistil_jax.distill.step import Feed, loss_call, predict_call
from xdistil_jax.labels import ClassSet, Decoding, Labels
from xdistil_jax.models.functional import Spec
from xdistil_jax.scoring import (
    SpanCounts,
    best_tags,
    class_counts,
    language_mean,
    span_counts,
)
from xdistil_jax.sharding import is_split, own_rows, place_batch, replicate
from xdistil_jax.types import Mean, Params


class TaggedSet(NamedTuple):
    """Tagged text on the devices, ready to be scored: feeds, and a flat array of its W words.

    A sentence cut into windows is put together again: each word takes its logits from the row that
    owns it, so scores don't depend on the maximum length. Sentence s is the words ``starts[s]`` up
    to ``starts[s] + sizes[s]``. A text to classify is one word. Words and sentences may end in
    padding, which has no entity.
    """

    feeds: tuple[tuple[Feed, Int[Array, "K B T"]], ...]
    gold: Int[Array, "W"]
    first: Bool[Array, "W"]
    language: Int[Array, "W"]
    starts: Int[Array, "S"]
    sizes: Int[Array, "S"]
    languages: tuple[str, ...]
    tagset: Labels
    decoding: Decoding
    mesh: Mesh


def tagged_set(
    store: EncodedStore, buckets: Buckets, tagset: Labels, mesh: Mesh, *,
    steps: int, decoding: Decoding, peers: Sequence[EncodedStore] = (),
) -> TaggedSet:  # fmt: skip
    """Place every row of ``store`` on the devices for scoring.

    As many words and sentences as the largest of ``peers`` has, filled up with padding: sets of
    the same peers share the programs that score them.
    """
    words = max(int(each.word_counts.sum()) for each in (store, *peers))
    sentences = max(len(each.word_counts) for each in (store, *peers))
    row_of = np.repeat(np.arange(store.rows), store.lengths)
    owned = (store.word >= 0) & store.owned
    slot = np.where(owned, store.word_offsets[store.sentence[row_of]] + store.word, words)
    gold = np.zeros(words, np.int32)
    gold[slot[owned]] = store.labels[owned]
    first = np.zeros(words, bool)
    first[store.word_offsets[:-1][store.word_counts > 0]] = True
    language = np.zeros(words, np.int32)
    language[slot[owned]] = store.language[row_of[owned]]
    feeder = Feeder(store, buckets, None, mesh, steps)
    feeds = []
    for call in whole_rows(buckets, np.arange(store.rows), store.lengths, steps):
        feed, _ = feeder.feed(call, np.ones(call.rows.shape[1], bool))
        rows = feeder.filled(call)
        rows = rows[:, own_rows(mesh, rows.shape[1])]
        index, real = pieces(store, rows, buckets.widths[call.bucket])
        slots = np.where(real, slot[index], words).astype(np.int32)
        feeds.append((feed, place_batch(slots, mesh, leading=1)))
    empty = (0, sentences - len(store.word_counts))
    starts = np.pad(store.word_offsets[:-1], empty).astype(np.int32)
    sizes = np.pad(store.word_counts, empty).astype(np.int32)
    placed = replicate((gold, first, language, starts, sizes), mesh)
    return TaggedSet(tuple(feeds), *placed, store.languages, tagset, decoding, mesh)


def predict(student: Spec, dtype: str, params: Params, tagged: TaggedSet) -> Int[Array, "W"]:
    """The tag number of every word."""
    return decode(word_logits(student, dtype, params, tagged), tagged)


def word_logits(
    student: Spec, dtype: str, params: Params, tagged: TaggedSet
) -> Float[Array, "W C"]:
    """The logits of every word, which are those of its first piece."""
    run = predict_call(student, dtype, tagged.mesh, is_split(params))
    flat = np.zeros((len(tagged.gold), len(tagged.tagset)), np.float32)
    flat = replicate(flat, tagged.mesh)
    for feed, slots in tagged.feeds:
        flat = run(params, flat, feed, slots)
    return flat


def decode(logits: Float[Array, "W C"], tagged: TaggedSet) -> Int[Array, "W"]:
    """Logits of the words of ``tagged`` -> the tag number of each."""
    return _decode(logits, tagged.starts, tagged.sizes, tagged.tagset, tagged.decoding)


@partial(jax.jit, static_argnames=("tagset", "decoding"))
@named("decode tags")
def _decode(
    logits: Float[Array, "W C"],
    starts: Int[Array, "S"],
    sizes: Int[Array, "S"],
    tagset: Labels,
    decoding: Decoding,
) -> Int[Array, "W"]:
    if decoding == "argmax" or isinstance(tagset, ClassSet):
        return logits.argmax(-1)
    return best_tags(logits, starts, sizes, tagset.follows)


@partial(jax.jit, static_argnames=("tagset", "groups"))
@named("count spans")
def _counts(
    flat: Int[Array, "W"],
    gold: Int[Array, "W"],
    first: Bool[Array, "W"],
    language: Int[Array, "W"],
    tagset: Labels,
    groups: int,
) -> SpanCounts:
    if isinstance(tagset, ClassSet):
        return class_counts(flat, gold, language, groups=groups)
    begins, kinds = jnp.asarray(tagset.begins), jnp.asarray(tagset.kinds)
    return span_counts(flat, gold, first, language, begins, kinds, groups=groups)


def dev_f1(student: Spec, dtype: str, params: Params, tagged: TaggedSet) -> float:
    """The language mean of F1 (of classes: accuracy), from 0 to 1, from counts made inside jit."""
    flat = predict(student, dtype, params, tagged)
    counts = _counts(
        flat, tagged.gold, tagged.first, tagged.language, tagged.tagset, len(tagged.languages)
    )
    return float(language_mean(counts))


def tags_by_sentence(
    flat: Int[Array, "W"], store: EncodedStore, tagset: Labels
) -> list[tuple[str, ...]]:
    """Predicted tags of each sentence of ``store``, in its order."""
    numbers = np.asarray(flat)
    bounds = store.word_offsets
    return [tagset.decode(numbers[a:b]) for a, b in pairwise(bounds)]


class HeldOut(NamedTuple):
    """Transfer sentences that no stage trains on, with what the teacher says of them."""

    feeds: tuple[Feed, ...]

    @classmethod
    def of(
        cls,
        store: EncodedStore,
        rows: Int[np.ndarray, "N"],
        buckets: Buckets,
        teacher: Streams,
        mesh: Mesh,
        *,
        steps: int,
    ) -> "HeldOut":
        """Place ``rows`` and their targets on the devices."""
        feeder = Feeder(store, buckets, teacher, mesh, steps)
        calls = whole_rows(buckets, rows, store.lengths[rows], steps)
        feeds = (feeder.feed(call, np.zeros(call.rows.shape[1], bool))[0] for call in calls)
        return cls(tuple(feeds))

    def means(
        self, model: Model, losses: Sequence[Loss], params: Params, arrays: PyTree
    ) -> dict[str, float]:
        """The mean of each loss over the held-out pieces; cross-entropy has no labels there."""
        names = tuple(name for name in losses if name != "ce")
        run = loss_call(model, names)
        totals: list[Mean] = []
        for feed in self.feeds:
            now = run(params, arrays, feed)
            totals = [a.merge(b) for a, b in zip(totals, now, strict=True)] if totals else list(now)
        values = [float(mean.compute()) for mean in totals]
        return dict(zip(names, values, strict=True))
