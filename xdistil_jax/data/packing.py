"""Packed rows: sentences of one language end to end, so that little of a batch is padding."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from xdistil_jax.data.arrays import digest, gather
from xdistil_jax.data.encode import EncodedStore
from xdistil_jax.data.windows import bounds, expand
from xdistil_jax.labels import UNLABELLED

_CHUNK = 8192
_OF_PIECES = {"tokens": np.int32, "word": np.int32, "owned": np.bool_, "labels": np.int8}


def pack(store: EncodedStore, *, folder: Path | None = None) -> EncodedStore:
    """Rows ``[CLS] a [SEP] b [SEP] …`` of at most ``store.max_length`` pieces, without tags.

    Sentences stay in their order within a language, and whole; one longer than a row keeps the
    windows that it was cut into, each with the words that it owns, so that no word stands twice.
    A row counts as one sentence, whose words are numbered from its first. What is as long as the
    text lies on disk, see ``arrays.gather``.

    Raises:
        ValueError: if there is no sentence with a word.
    """
    if not store.owned.any():
        raise ValueError("there is no text to be packed: no sentence has a word")
    size = np.concatenate([_sizes(store, first) for first in range(0, store.rows, _CHUNK)] or [[]])
    size = size.astype(np.int64)
    order = np.argsort(store.language, kind="stable")
    order = order[size[order] > 0]
    begins = _begins(size[order] + 1, store.language[order], store.max_length - 1)
    first = np.flatnonzero(begins)
    lengths = 1 + np.add.reduceat(size[order] + 1, first)
    arrays = gather(_parts(store, order, bounds(begins)[1:]), _OF_PIECES, folder)
    offsets = bounds(lengths)
    counts = np.add.reduceat(arrays["owned"], offsets[:-1], dtype=np.int32)
    return replace(
        store,
        **arrays,
        offsets=offsets,
        sentence=np.arange(len(first), dtype=np.int32),
        language=store.language[order[first]],
        word_counts=counts,
        identity=digest([store.identity, "packed"]),
    )


def _own_pieces(
    store: EncodedStore, index: Int[np.ndarray, "N"], ends: Int[np.ndarray, "r+1"]
) -> Bool[np.ndarray, "N"]:
    """Which pieces of these rows belong to a word that its row owns?

    ``index`` are the places of the rows' pieces in the store, row after row; ``ends`` bounds them.
    """
    begins = store.word[index] >= 0
    # A piece inside a word goes with the first one.
    latest = np.maximum.accumulate(np.where(begins, np.arange(len(index)), -1))
    own = store.owned[index][latest] & (latest >= 0)
    own[ends[:-1]] = own[ends[1:] - 1] = False
    return own


def _sizes(store: EncodedStore, first: int) -> Int[np.ndarray, "r"]:
    """How many pieces each of ``_CHUNK`` rows owns."""
    offsets = store.offsets[first : first + _CHUNK + 1]
    ends = offsets - offsets[0]
    own = _own_pieces(store, np.arange(offsets[0], offsets[-1]), ends)
    return np.add.reduceat(own, ends[:-1], dtype=np.int64)


def _begins(
    costs: Int[np.ndarray, "n"], language: Int[np.ndarray, "n"], room: int
) -> Bool[np.ndarray, "n"]:
    """Where a new row begins, if each sentence goes into the row before it where it fits."""
    begins, left, before = [], 0, -1
    for cost, code in zip(costs.tolist(), language.tolist(), strict=True):
        new = cost > left or code != before
        left, before = (room if new else left) - cost, code
        begins.append(new)
    return np.array(begins, bool)


def _parts(
    store: EncodedStore, order: Int[np.ndarray, "n"], row: Int[np.ndarray, "n"]
) -> Iterator[dict[str, np.ndarray]]:
    """The pieces of the packed rows, some at once; sentence ``order[i]`` goes into ``row[i]``."""
    at = 0
    while at < len(order):
        end = np.searchsorted(row, row[min(at + _CHUNK, len(order)) - 1], "right")
        sizes = store.lengths[order[at:end]].astype(np.int64)
        index, ends = expand(store.offsets[order[at:end]], sizes), bounds(sizes)
        keep = _own_pieces(store, index, ends)
        begins = keep & (store.word[index] >= 0)
        # [CLS] stays where a row begins, [SEP] behind every sentence.
        keep[ends[:-1]] = np.concatenate([[True], row[at + 1 : end] != row[at : end - 1]])
        keep[ends[1:] - 1] = True
        begins, owner = begins[keep], np.repeat(row[at:end], sizes)[keep]
        before = np.cumsum(begins) - begins
        # Words of the rows before; each row begins with a piece that is none.
        first = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
        number = before - np.repeat(before[first], np.diff([*first, len(owner)]))
        yield {
            "tokens": store.tokens[index[keep]], "word": np.where(begins, number, -1),
            "owned": begins, "labels": np.full(len(begins), UNLABELLED),
        }  # fmt: skip
        at = end
