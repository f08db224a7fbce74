"""A teacher that is not ours: its states and logits, handed over as arrays, sentence by sentence.

``OutputsWriter`` fills a folder, in any order, in parts, from as many processes as you like; what
it holds is addressed by the words of a sentence. The format (version 1) is meant to stay:

    outputs.json                 format, tags, width, layer
    parts/NAME/part.json         sizes and checksums of the arrays beside it
    parts/NAME/sentences.npy     uint64 [S, 2]: blake2b of the words, joined by U+001F, 128 bits
    parts/NAME/counts.npy        int32 [S]: words of each sentence
    parts/NAME/hidden.npy        uint16 [W, D]: the bits of bfloat16, one row a word
    parts/NAME/logits.npy        float16 [W, C]
"""

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int, Shaped

from xdistil_jax.data.arrays import gather
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.encode import EncodedStore
from xdistil_jax.files import write_atomic
from xdistil_jax.teacher.anchor import (
    PLACES,
    AnchoredTeacher,
    Places,
    Pool,
    at_pieces,
    sentence_ranges,
)
from xdistil_jax.teacher.cache import CacheLookup
from xdistil_jax.teacher.codec import NotFiniteError, encode_bf16, encode_logits
from xdistil_jax.teacher.manifest import CacheMismatch, hidden_name
from xdistil_jax.teacher.shards import Sealed, digest, keys, locate

_FORMAT = 1
_PART_BYTES = 40 << 20


def sentence_hash(words: Sequence[str]) -> bytes:
    """What a sentence is found by: 16 bytes."""
    return hashlib.blake2b("\x1f".join(words).encode(), digest_size=16).digest()


class OutputsWriter:
    """Fills ``folder`` with a teacher's outputs; use it in a ``with`` block.

    ``tags`` are the columns of the logits, ``width`` is that of the hidden states (0: logits only)
    and ``layer`` a name for them. Words that are given as several pieces are read at the first, or
    as their mean (``pool``).

    Raises:
        CacheMismatch: if the folder holds outputs with other tags, width or layer.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        tags: Sequence[str],
        width: int,
        layer: str = "teacher",
        pool: Pool = "first",
    ) -> None:
        self.folder, self.pool = Path(folder), pool
        self.about = {"format": _FORMAT, "tags": list(tags), "width": width, "layer": layer}
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest = self.folder / "outputs.json"
        if not manifest.is_file():
            write_atomic(manifest, json.dumps(self.about, ensure_ascii=False, indent=2))
        elif (found := _read_manifest(self.folder)) != self.about:
            differ = [name for name in self.about if found.get(name) != self.about[name]]
            raise CacheMismatch(
                f"{manifest}: another {', '.join(differ)} there; use another folder, or remove it"
            )
        self._held: list[tuple[bytes, np.ndarray, np.ndarray]] = []
        self._bytes = 0

    def add(
        self,
        words: Sequence[str],
        hidden: Float[np.ndarray, "N D"] | None,
        logits: Float[np.ndarray, "N C"],
        *,
        word_of: Sequence[int | None] | None = None,
    ) -> None:
        """What the teacher says of one sentence.

        One row a word; or, with ``word_of``, one row a piece and for each the index of its word
        (None or -1 for special pieces), as ``word_ids()`` of a fast tokenizer gives it.

        Raises:
            ValueError: naming the sentence, for arrays that don't fit it or aren't finite.
        """
        logits = np.asarray(logits, np.float32)
        width = self.about["width"]
        states = np.zeros((len(logits), 0), np.float32) if hidden is None else np.asarray(hidden)
        wanted = (len(words) if word_of is None else len(word_of), len(self.about["tags"]))
        if logits.shape != wanted or states.shape != (len(logits), width):
            raise ValueError(
                f"{self._named(words)}: logits {logits.shape} and states {states.shape}, expected "
                f"{wanted} and {(wanted[0], width)}"
            )
        if word_of is not None:
            states, logits = self._at_words(words, word_of, states, logits)
        try:
            encoded = encode_bf16(states.astype(np.float32)), encode_logits(logits)
        except NotFiniteError as error:
            raise ValueError(f"{self._named(words)}: {error}") from error
        self._held.append((sentence_hash(words), *encoded))
        self._bytes += encoded[0].nbytes + encoded[1].nbytes
        if self._bytes >= _PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Put on disk what was added since the last time, as one part."""
        if not self._held:
            return
        hashes, hidden, logits = zip(*self._held, strict=True)
        arrays = {
            "sentences": np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2),
            "counts": np.array([len(each) for each in logits], np.int32),
            "hidden": np.concatenate(hidden),
            "logits": np.concatenate(logits),
        }
        # In the order of time, so that what was written last is read last.
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        Sealed.write(self.folder / "parts" / name / "part.json", arrays, {"format": _FORMAT})
        self._held, self._bytes = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.flush()

    def _at_words(
        self,
        words: Sequence[str],
        word_of: Sequence[int | None],
        states: np.ndarray,
        logits: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        number = np.array([-1 if word is None else word for word in word_of], np.int64)
        pieces = [np.flatnonzero(number == word) for word in range(len(words))]
        if lost := [word for word, found in zip(words, pieces, strict=True) if not len(found)]:
            raise ValueError(f"{self._named(words)}: no piece belongs to the word {lost[0]!r}")
        if self.pool == "first":
            first = np.array([found[0] for found in pieces], np.int64)
            return states[first], logits[first]
        both = [[array[found].mean(0) for found in pieces] for array in (states, logits)]
        return np.array(both[0]).reshape(len(words), -1), np.array(both[1])

    @staticmethod
    def _named(words: Sequence[str]) -> str:
        return f"sentence {' '.join(words)[:60]!r} ({len(words)} words)"


class Outputs(NamedTuple):
    """What a folder holds. ``key`` is sorted; beside it each sentence's part, first row, words."""

    identity: str
    tags: tuple[str, ...]
    width: int
    layer: str
    maps: dict[str, list[Shaped[np.ndarray, "W D"]]]
    lookup: CacheLookup
    key: Shaped[np.ndarray, "S"]
    part: Int[np.ndarray, "S"]
    start: Int[np.ndarray, "S"]
    count: Int[np.ndarray, "S"]


def read_outputs(folder: str | Path) -> Outputs:
    """Verify and map all parts. A sentence that was added twice counts as it was added last.

    Raises:
        CacheDamaged: naming the file that isn't what was written.
        CacheMismatch: if there are no outputs in ``folder``, or of a newer version.
    """
    folder = Path(folder)
    about = _read_manifest(folder)
    sealed = [Sealed.read(path) for path in sorted(folder.glob("parts/*/part.json"))]
    if not sealed:
        raise CacheMismatch(f"{folder}: no sentence was added yet (there is no parts/*/part.json)")
    columns: dict[str, list[Any]] = {"key": [], "part": [], "start": [], "count": []}
    for number, part in enumerate(sealed):
        counts = np.asarray(part.array("counts"))
        columns["key"].append(keys(part.array("sentences")))
        columns["part"].append(np.full(len(counts), number))
        columns["start"].append(np.cumsum(counts) - counts)
        columns["count"].append(counts)
    joined = {name: np.concatenate(parts)[::-1] for name, parts in columns.items()}
    _, order = np.unique(joined["key"], return_index=True)
    layers = (about["layer"],) if about["width"] else ()
    maps = {hidden_name(layer): [part.array("hidden") for part in sealed] for layer in layers}
    maps["logits"] = [part.array("logits") for part in sealed]
    sums = sorted(file["blake2b"] for part in sealed for file in part.files.values())
    return Outputs(
        digest([about, sums]), tuple(about["tags"]), about["width"], about["layer"], maps,
        CacheLookup(layers, "bf16"), **{name: column[order] for name, column in joined.items()},
    )  # fmt: skip


def anchor_outputs(
    outputs: Outputs,
    sentences: Sequence[Sentence],
    ours: EncodedStore,
    *,
    folder: Path | None = None,
) -> AnchoredTeacher:
    """``outputs`` as the teacher of the rows of ``ours``, which encodes these sentences.

    Where the words lie is put aside in ``folder``, see ``data.arrays.gather``.

    Raises:
        ValueError: naming the first sentence of which the folder says nothing.
    """
    hashes = bytearray()
    for sentence in sentences:
        hashes += sentence_hash(sentence.words)
    place = locate(outputs.key, keys(np.frombuffer(hashes, "<u8").reshape(-1, 2)))
    if len(absent := np.flatnonzero(place < 0)):
        raise ValueError(
            f"the outputs lack {len(absent):,} of {len(sentences):,} sentences, first "
            f"{' '.join(sentences[absent[0]].words)[:60]!r}: add them, with exactly these words"
        )
    if len(odd := np.flatnonzero(outputs.count[place] != ours.word_counts)):
        raise ValueError(f"sentence {odd[0]} has another number of words in the outputs")

    def places() -> Iterator[Places]:
        for first, last in sentence_ranges(ours):
            part, at = ours.part(first, last), place[first:last]
            of_word = np.repeat(at, part.word_counts)
            within = np.arange(len(of_word)) - np.repeat(part.word_offsets[:-1], part.word_counts)
            start = outputs.start[of_word] + within
            yield at_pieces(part, outputs.part[of_word], start, np.ones_like(start))

    return AnchoredTeacher(outputs.maps, outputs.lookup, ours, **gather(places(), PLACES, folder))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "outputs.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        version = int(about["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheMismatch(f"{path}: no manifest of a teacher's outputs ({error!r})") from error
    if version > _FORMAT:
        raise CacheMismatch(f"{path}: format {version} is newer than this package: update it")
    return about
