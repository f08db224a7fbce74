"""Sentences -> rows of pieces, kept in a ragged, memory-mapped, content-addressed store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xdistil_jax import files, storage
from xdistil_jax.data.arrays import ArrayFolder, digest, gather, load_arrays
from xdistil_jax.data.arrays import StoreError as StoreError
from xdistil_jax.data.record import Sentence
from xdistil_jax.data.rows import encode_rows
from xdistil_jax.data.tokenizer import Tokenizer
from xdistil_jax.data.windows import bounds
from xdistil_jax.labels import ClassSet, Labels, TagSet

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int8, Int16, Int32, Int64, Shaped, UInt64

_FORMAT = 1
_CHUNK = 8192
"""Sentences, or rows, that are worked on at once."""
_BLOCK = 1 << 19
_ARRAYS = {
    "tokens": np.int32,
    "word": np.int32,
    "owned": np.bool_,
    "labels": np.int8,
    "offsets": np.int64,
    "sentence": np.int32,
    "language": np.int16,
    "word_counts": np.int32,
}


@dataclass(frozen=True, eq=False)
class EncodedStore:
    """Rows of pieces, end to end: row r is ``tokens[offsets[r]:offsets[r + 1]]``.

    Each row is framed by the special pieces. A sentence is one row, or, where it is too long,
    several overlapping ones; each of its words is owned by exactly one of them. A text to classify
    is one row, ``shortened`` of them cut, and one word, for which its first piece stands.
    """

    tokens: Int32[np.ndarray, "N"]
    offsets: Int64[np.ndarray, "R+1"]
    word: Int32[np.ndarray, "N"]
    """Index of the word in its sentence on its first piece, else -1."""
    owned: Bool[np.ndarray, "N"]
    """First pieces of the words that this row owns."""
    labels: Int8[np.ndarray, "N"]
    """Number of the tag on owned first pieces of tagged sentences, else -1."""
    sentence: Int32[np.ndarray, "R"]
    language: Int16[np.ndarray, "R"]
    languages: tuple[str, ...]
    word_counts: Int32[np.ndarray, "S"]
    max_length: int
    identity: str
    shortened: int = 0

    @property
    def rows(self) -> int:
        return len(self.sentence)

    @cached_property
    def lengths(self) -> Int32[np.ndarray, "R"]:
        return np.diff(self.offsets).astype(np.int32)

    @cached_property
    def word_offsets(self) -> Int64[np.ndarray, "S+1"]:
        return bounds(self.word_counts)

    def part(self, first: int, last: int) -> "EncodedStore":
        """The rows of sentences ``first`` up to ``last``, numbered from 0: views, not copies."""
        ends = np.array([first, last], self.sentence.dtype)
        start, stop = np.searchsorted(self.sentence, ends).tolist()
        offsets = self.offsets[start : stop + 1]
        names = ("tokens", "word", "owned", "labels")
        cut = {name: getattr(self, name)[offsets[0] : offsets[-1]] for name in names}
        return replace(
            self,
            **cut,
            offsets=offsets - offsets[0],
            sentence=self.sentence[start:stop] - self.sentence.dtype.type(first),
            language=self.language[start:stop],
            word_counts=self.word_counts[first:last],
            identity="",
        )

    def remap(self, kept: Int32[np.ndarray, "V"], *, folder: Path | None = None) -> "EncodedStore":
        """The same rows in the ids of a cut tokenizer, where ``kept[new_id] == old_id``.

        The new ids lie on disk, see ``arrays.gather``.

        Raises:
            ValueError: naming the first piece that was cut away.
        """
        new_ids = np.full(max(kept.max(initial=-1), self.tokens.max(initial=-1)) + 1, -1, np.int32)
        new_ids[kept] = np.arange(len(kept), dtype=np.int32)
        parts = ({"tokens": new_ids[part]} for part in blocks(self.tokens))
        tokens = gather(parts, {"tokens": np.int32}, folder)["tokens"]
        if tokens.min(initial=0) < 0:
            lost = np.flatnonzero(tokens < 0)[0]
            row = np.searchsorted(self.offsets, lost, "right") - 1
            raise ValueError(
                f"piece {self.tokens[lost]} of row {row} (sentence {self.sentence[row]}) is not "
                "in the cut tokenizer: cut it to the pieces of this text too, or encode the text "
                "with the cut tokenizer"
            )
        identity = digest([self.identity, kept.tolist()])
        return replace(self, tokens=tokens, identity=identity)

    def row_hashes(self) -> UInt64[np.ndarray, "R 2"]:
        """blake2b of each row's pieces: equal rows of any two stores have equal hashes."""
        content = memoryview(np.ascontiguousarray(self.tokens, "<i4")).cast("B")
        hashes = np.empty((self.rows, 2), np.uint64)
        for first in range(0, self.rows, _CHUNK):
            ends = (4 * self.offsets[first : first + _CHUNK + 1]).tolist()
            found = bytearray()
            for start, end in pairwise(ends):
                found += hashlib.blake2b(content[start:end], digest_size=16).digest()
            hashes[first : first + _CHUNK] = np.frombuffer(found, "<u8").reshape(-1, 2)
        return hashes


def blocks(array: Shaped[np.ndarray, "N"]) -> Iterator[Shaped[np.ndarray, "M"]]:
    """``array``, which may be longer than memory, piece by piece."""
    for start in range(0, len(array), _BLOCK):
        yield array[start : start + _BLOCK]


def pieces(
    store: EncodedStore, rows: Int[np.ndarray, "K B"], width: int
) -> tuple[Int[np.ndarray, "K B T"], Bool[np.ndarray, "K B T"]]:
    """(place of each piece in the store's flat arrays, is it real); -1 is a row without pieces."""
    lengths = np.where(rows >= 0, store.lengths[rows], 0)
    place = np.arange(width)
    real = place < lengths[..., None]
    return np.where(real, store.offsets[rows][..., None] + place, 0), real


def encode(
    sentences: Sequence[Sentence],
    tokenizer: Tokenizer,
    tagset: Labels | None,
    *,
    max_length: int,
    folder: str | Path,
    overlap: int | None = None,
) -> EncodedStore:
    """Encode, or find what was encoded before, in ``folder/HASH``.

    Windows of a long sentence share about ``overlap`` pieces (a quarter of the maximum by default).
    The hash covers sentences, tokenizer, tags and settings.

    Raises:
        StoreError: if the store was found, but is damaged.
        ValueError: for tags that don't fit the words or the tag set, naming the sentence.
    """
    overlap = max_length // 4 if overlap is None else overlap
    if max_length < 8 or not 0 <= overlap < max_length - 2:
        raise ValueError(
            f"max_length {max_length}, overlap {overlap}: expected max_length of 8 or more and "
            "overlap from 0 up to max_length - 3"
        )
    source = {
        "format": _FORMAT,
        "sentences": _hash_sentences(sentences),
        "tokenizer": tokenizer.fingerprint,
        "types": list(tagset.types) if isinstance(tagset, TagSet) else None,
        "max_length": max_length,
        "overlap": overlap,
    }
    if isinstance(tagset, ClassSet):
        source["classes"] = list(tagset.classes)
    final = Path(folder) / digest(source)
    storage.settle(final)
    if not final.exists():
        with files.atomic_folder(final) as temporary:
            _write(temporary, sentences, tokenizer, tagset, source)
    return load_store(final)


def encode_in_memory(
    sentences: Sequence[Sentence],
    tokenizer: Tokenizer,
    tagset: Labels | None = None,
    *,
    max_length: int,
) -> EncodedStore:
    """The store of a few sentences, without a folder and without their labels: for tagging.

    ``tagset`` only says whether their words are to be tagged (or None), or each text as a whole.
    """
    bare = [sentence._replace(tags=None) for sentence in sentences]
    rows, _ = encode_rows(bare, 0, tokenizer, tagset, max_length, max_length // 4)
    languages = tuple(sorted({sentence.language for sentence in sentences}))
    numbers = {language: number for number, language in enumerate(languages)}
    language = np.array([numbers[sentence.language] for sentence in sentences], np.int16)
    rows["language"] = language[rows["sentence"]]
    arrays = {name: np.asarray(rows[name], kind) for name, kind in _ARRAYS.items()}
    return EncodedStore(**arrays, languages=languages, max_length=max_length, identity="")


def load_store(path: str | Path) -> EncodedStore:
    """Map a store into memory, after all of its checksums were found right.

    Raises:
        StoreError: naming the file that is damaged or missing.
    """
    arrays, source, facts = load_arrays(Path(path))
    return EncodedStore(
        **arrays,
        languages=tuple(facts["languages"]),
        max_length=source["max_length"],
        identity=Path(path).name,
        shortened=facts.get("shortened", 0),
    )


def piece_counts(stores: Iterable[EncodedStore], vocab_size: int) -> Int64[np.ndarray, "V"]:
    """How often each piece occurs; windows that overlap count twice."""
    counts = np.zeros(vocab_size, np.int64)
    for store in stores:
        for block in blocks(store.tokens):
            part = np.bincount(block, minlength=vocab_size)
            if len(part) > vocab_size:
                raise ValueError(f"piece {len(part) - 1} is beyond the {vocab_size} pieces counted")
            counts += part
    return counts


def stitch(
    store: EncodedStore, predictions: Shaped[np.ndarray, "N *rest"]
) -> list[Shaped[np.ndarray, "W *rest"]]:
    """What stands for each piece -> for each word of each sentence, from the owning windows."""
    if len(predictions) != len(store.tokens):
        raise ValueError(
            f"predictions of shape {predictions.shape}: expected one for each of the store's "
            f"{len(store.tokens)} pieces"
        )
    pieces = np.flatnonzero(store.owned)
    row = np.searchsorted(store.offsets, pieces, "right") - 1
    words = np.empty((store.word_offsets[-1], *predictions.shape[1:]), predictions.dtype)
    words[store.word_offsets[store.sentence[row]] + store.word[pieces]] = predictions[pieces]
    return np.split(words, store.word_offsets[1:-1])[: len(store.word_counts)]


def _write(
    folder: Path,
    sentences: Sequence[Sentence],
    tokenizer: Tokenizer,
    tagset: Labels | None,
    source: dict[str, Any],
) -> None:
    languages, shortened = sorted({sentence.language for sentence in sentences}), 0
    numbers = {language: number for number, language in enumerate(languages)}
    arrays = ArrayFolder(folder, _ARRAYS)
    arrays.append("offsets", np.zeros(1, np.int64))
    for first in range(0, len(sentences), _CHUNK):
        chunk = sentences[first : first + _CHUNK]
        limits = source["max_length"], source["overlap"]
        rows, cut = encode_rows(chunk, first, tokenizer, tagset, *limits)
        shortened += cut
        language = np.array([numbers[sentence.language] for sentence in chunk])
        rows["language"] = language[rows["sentence"]]
        rows["sentence"] = rows["sentence"] + first
        rows["offsets"] = rows["offsets"][1:] + arrays.length("tokens")
        for name in _ARRAYS:
            arrays.append(name, rows[name])
    arrays.close(source, {"languages": languages, "shortened": shortened})


def _hash_sentences(sentences: Sequence[Sentence]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for first in range(0, len(sentences), _CHUNK):
        state.update(json.dumps(list(sentences[first : first + _CHUNK])).encode())
    return state.hexdigest()
