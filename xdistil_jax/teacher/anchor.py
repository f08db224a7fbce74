"""A teacher and a student that cut words differently: what the one says is read at words.

Both stores hold the same sentences. A word's anchor is the first piece of the row that owns it, on
either side, so windows may differ as well as pieces.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int, Shaped

from xdistil_jax.data.arrays import gather
from xdistil_jax.data.encode import EncodedStore, pieces
from xdistil_jax.teacher.basis import Basis
from xdistil_jax.teacher.cache import CacheLookup, TeacherCache
from xdistil_jax.teacher.codec import LOGITS, Numbers, find_codec
from xdistil_jax.teacher.manifest import hidden_name

Pool = Literal["first", "mean"]
Places = Mapping[str, Int[np.ndarray, "N"]]
"""``shard``, ``place`` and ``count`` of an ``AnchoredTeacher``, or of some of its sentences."""
PLACES = {"shard": np.int32, "place": np.int64, "count": np.int32}

_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class AnchoredTeacher:
    """Arrays of a teacher as seen from the words of the student's rows.

    ``maps`` are those of a ``TeacherCache``. ``shard`` and ``place`` say for each piece of the
    student's store where its word lies there (-1: the piece begins no word that its row owns),
    ``count`` over how many rows the mean goes; ``arrays`` are the cache's.
    """

    maps: Mapping[str, Sequence[Shaped[np.ndarray, "N W"]]]
    lookup: CacheLookup
    store: EncodedStore
    shard: Int[np.ndarray, "N"]
    place: Int[np.ndarray, "N"]
    count: Int[np.ndarray, "N"]
    arrays: Mapping[str, Basis] = field(default_factory=dict)

    words_only: ClassVar[bool] = True

    def stream(self, rows: Int[np.ndarray, "*K B"], width: int) -> dict[str, Any]:
        """``TeacherCache.stream`` at first pieces, and zeros elsewhere."""
        index, real = pieces(self.store, np.asarray(rows), width)
        asked = real & (self.shard[index] >= 0)
        at = index[asked]
        shape = (*np.shape(rows), width)
        layers, states = self.lookup.layers, find_codec(self.lookup.codec).numbers
        formats = {"logits": LOGITS} | {hidden_name(layer): states for layer in layers}
        gathered = {}
        for name, numbers in formats.items():
            out = np.zeros((*shape, self.maps[name][0].shape[1]), numbers.streamed)
            out[asked] = self._pooled(name, numbers, at)
            gathered[name] = out
        hidden = {layer: gathered[hidden_name(layer)] for layer in layers}
        return {"hidden": hidden, "logits": gathered["logits"]}

    def _pooled(
        self, name: str, numbers: Numbers, at: Int[np.ndarray, "M"]
    ) -> Shaped[np.ndarray, "M W"]:
        """The array ``name`` of the words at ``at``: of one piece each, or their mean, decoded for
        it and encoded again."""
        counts = self.count[at]
        if (counts == 1).all():
            return self._taken(name, self.shard[at], self.place[at]).view(numbers.streamed)
        ends = np.cumsum(counts)
        within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        shards, places = np.repeat(self.shard[at], counts), np.repeat(self.place[at], counts)
        every = numbers.decode(self._taken(name, shards, places + within).view(numbers.streamed))
        sums = np.add.reduceat(every, ends - counts, axis=0)
        return numbers.encode(sums / counts[:, None]).view(numbers.streamed)

    def _taken(self, name: str, shard: np.ndarray, place: np.ndarray) -> Shaped[np.ndarray, "M W"]:
        maps = self.maps[name]
        out = np.empty((len(shard), maps[0].shape[1]), maps[0].dtype)
        for number in np.unique(shard):
            chosen = shard == number
            out[chosen] = maps[number][place[chosen]]
        return out


def anchor(
    cache: TeacherCache,
    theirs: EncodedStore,
    ours: EncodedStore,
    *,
    pool: Pool = "first",
    folder: Path | None = None,
) -> AnchoredTeacher:
    """``cache``, which is bound to the rows of ``theirs``, for the rows of ``ours``.

    ``pool="mean"`` takes the mean over a word's pieces instead of the first one. Where the words
    lie is put aside in ``folder``, see ``data.arrays.gather``.

    Raises:
        ValueError: if the two stores don't hold the same sentences, or if the cache wasn't asked
            for all of them.
    """
    if not np.array_equal(theirs.word_counts, ours.word_counts):
        raise ValueError("the teacher's and the student's store don't hold the same sentences")
    silent = (
        theirs.owned[slice(*theirs.offsets[r : r + 2])] for r in np.flatnonzero(cache.shard < 0)
    )
    if lost := sum(int(owned.sum()) for owned in silent):
        raise ValueError(
            f"the cache wasn't asked for {lost:,} of {int(theirs.word_counts.sum()):,} words: pass "
            "all rows to build_cache(rows=...)"
        )

    def places() -> Iterator[Places]:
        row = 0
        for first, last in sentence_ranges(ours):
            part = theirs.part(first, last)
            token, length = _words(part)
            own = np.searchsorted(part.offsets, token, "right") - 1
            count = length if pool == "mean" else np.ones_like(length)
            start = cache.start[row + own] + token - part.offsets[own]
            yield at_pieces(ours.part(first, last), cache.shard[row + own], start, count)
            row += part.rows

    return AnchoredTeacher(
        cache.maps, cache.lookup, ours, **gather(places(), PLACES, folder), arrays=cache.arrays
    )


def sentence_ranges(store: EncodedStore) -> Iterator[tuple[int, int]]:
    """All sentences of a store, so many at once that their pieces fit into memory."""
    count = len(store.word_counts)
    return ((first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK))


def at_pieces(
    ours: EncodedStore,
    shard: Int[np.ndarray, "W"],
    start: Int[np.ndarray, "W"],
    count: Int[np.ndarray, "W"],
) -> Places:
    """What is said of each word -> of each piece of ``ours`` that stands for one."""
    number = word_numbers(ours)
    stands = np.flatnonzero(number >= 0)
    found = {"shard": np.full(len(number), -1), "place": 0 * number, "count": 1 + 0 * number}
    for name, of_word in (("shard", shard), ("place", start), ("count", count)):
        found[name][stands] = of_word[number[stands]]
    return found


def word_numbers(store: EncodedStore) -> Int[np.ndarray, "N"]:
    """For each piece the number of the word, over all sentences, that it stands for, or -1."""
    row = np.repeat(np.arange(store.rows), store.lengths)
    stands = (store.word >= 0) & store.owned
    return np.where(stands, store.word_offsets[store.sentence[row]] + store.word, -1)


def _words(store: EncodedStore) -> tuple[Int[np.ndarray, "W"], Int[np.ndarray, "W"]]:
    """(first piece of each word in the row that owns it, or -1; number of its pieces there)."""
    slot = word_numbers(store)
    stands = np.flatnonzero(slot >= 0)
    token = np.full(int(store.word_counts.sum()), -1, np.int64)
    token[slot[stands]] = stands
    # A word ends where another begins, or before the special piece at the end of its row.
    ends = np.union1d(np.flatnonzero(store.word >= 0), store.offsets[1:] - 1)
    length = np.ones(len(token), np.int64)
    length[slot[stands]] = ends[np.searchsorted(ends, stands, "right")] - stands
    return token, length
