"""Sentences -> rows of pieces: windows whose words are tagged, or whole texts to classify.

The engine knows words. A text to classify is one word for it, for which its first piece, [CLS],
stands; it is one row, cut where it is too long.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from xdistil_jax.data.record import PAIR, Sentence
from xdistil_jax.data.tokenizer import Tokenizer
from xdistil_jax.data.windows import bounds, expand, own_words, plan_windows
from xdistil_jax.labels import UNLABELLED, ClassSet, Labels, TagSet

if TYPE_CHECKING:
    from jaxtyping import Int8


def encode_rows(
    chunk: Sequence[Sentence],
    first: int,
    tokenizer: Tokenizer,
    tagset: Labels | None,
    max_length: int,
    overlap: int,
) -> tuple[dict[str, np.ndarray], int]:
    """(the arrays of a store for these sentences alone, how many of them were cut).

    Raises:
        ValueError: for labels that don't fit the words or ``tagset``, naming the sentence.
    """
    if isinstance(tagset, ClassSet):
        classes = _number_classes(chunk, first, tagset)
        return _encode_whole(chunk, classes, tokenizer, max_length)
    labels = _number_tags(chunk, first, tagset)
    return _encode_windows(chunk, labels, tokenizer, max_length, overlap), 0


def _encode_windows(
    chunk: Sequence[Sentence],
    labels: Int8[np.ndarray, "W"],
    tokenizer: Tokenizer,
    max_length: int,
    overlap: int,
) -> dict[str, np.ndarray]:
    """The arrays of a store whose words are tagged."""
    numbers: dict[str, int] = {}
    flat = [numbers.setdefault(word, len(numbers)) for sent in chunk for word in sent.words]
    pieces, starts = tokenizer.word_pieces(list(numbers))
    distinct = np.array(flat, np.int64)
    word_counts = np.array([len(sentence.words) for sentence in chunk], np.int64)
    words = bounds(word_counts)

    sizes = np.minimum(np.diff(starts), max_length - 2)[distinct]
    windows = plan_windows(words, bounds(sizes), max_length - 2, overlap)
    entries = expand(windows.start, windows.end - windows.start)
    row = np.repeat(np.arange(len(windows.start)), windows.end - windows.start)
    owned_entries = own_words(windows, bounds(sizes), entries, row)

    lengths = 2 + np.bincount(row, sizes[entries], len(windows.start)).astype(np.int64)
    offsets = bounds(lengths)
    tokens = np.full(offsets[-1], tokenizer.cls_id, np.int32)
    tokens[offsets[1:] - 1] = tokenizer.sep_id
    inner = np.ones(offsets[-1], np.bool_)
    inner[offsets[:-1]] = inner[offsets[1:] - 1] = False
    tokens[inner] = pieces[expand(starts[distinct[entries]], sizes[entries])]

    # Pieces of the rows before, and 2 r + 1 special pieces, stand before an entry of row r.
    position = bounds(sizes[entries])[:-1] + 2 * row + 1
    word = np.full(offsets[-1], -1, np.int32)
    word[position] = entries - words[windows.sentence[row]]
    owned = np.zeros(offsets[-1], np.bool_)
    owned[position[owned_entries]] = True
    tags = np.full(offsets[-1], UNLABELLED, np.int8)
    tags[owned] = labels[entries[owned_entries]]
    return {
        "tokens": tokens,
        "word": word,
        "owned": owned,
        "labels": tags,
        "offsets": offsets,
        "sentence": windows.sentence,
        "word_counts": word_counts,
    }


def _number_tags(
    chunk: Sequence[Sentence], first: int, tagset: TagSet | None
) -> Int8[np.ndarray, "W"]:
    if tagset is not None and len(tagset) > 128:
        raise ValueError(f"{len(tagset)} tags: a store holds at most 128")
    labels: list[int] = []
    for number, (words, tags, _) in enumerate(chunk, start=first):
        if tagset is None or tags is None:
            labels += [UNLABELLED] * len(words)
            continue
        if len(tags) != len(words):
            raise ValueError(f"sentence {number} has {len(words)} words, but {len(tags)} tags")
        try:
            labels += [tagset.index[tag] for tag in tags]
        except KeyError as error:
            raise ValueError(
                f"sentence {number}: tag {error} is not one of {', '.join(tagset.tags)}"
            ) from error
    return np.array(labels, np.int8)


def _number_classes(
    chunk: Sequence[Sentence], first: int, classes: ClassSet
) -> Int8[np.ndarray, "R"]:
    """The number of each text's class, -1 where it has none; ``first`` is that of the first text.

    Raises:
        ValueError: naming the text whose class is unknown, or that hasn't exactly one.
    """
    if len(classes) > 128:
        raise ValueError(f"{len(classes)} classes: a store holds at most 128")
    numbers = np.full(len(chunk), UNLABELLED, np.int8)
    for number, sentence in enumerate(chunk):
        if sentence.tags is None:
            continue
        if len(sentence.tags) != 1 or sentence.tags[0] not in classes.index:
            raise ValueError(
                f"text {first + number} has the classes {', '.join(sentence.tags)}; expected one "
                f"of {', '.join(classes.classes)}"
            )
        numbers[number] = classes.index[sentence.tags[0]]
    return numbers


def _encode_whole(
    chunk: Sequence[Sentence],
    labels: Int8[np.ndarray, "R"],
    tokenizer: Tokenizer,
    max_length: int,
) -> tuple[dict[str, np.ndarray], int]:
    """(the arrays of a store for these texts alone, how many of them were cut).

    [CLS] text [SEP], or [CLS] text [SEP] text [SEP]. Of a pair that is too long the longer text is
    cut first, as ``longest_first`` does.
    """
    texts = [_split(sentence.words) for sentence in chunk]
    cut = iter(tokenizer.pieces([words for text in texts for words in text]))
    rows, shortened = [], 0
    for text in texts:
        parts = [list(chain.from_iterable(next(cut))) for _ in text]
        kept = _kept([len(part) for part in parts], max_length - 1 - len(parts))
        shortened += kept != [len(part) for part in parts]
        framed = ((*part[:size], tokenizer.sep_id) for part, size in zip(parts, kept, strict=True))
        rows.append((tokenizer.cls_id, *chain.from_iterable(framed)))
    offsets = bounds(np.array([len(row) for row in rows], np.int64))
    tokens = np.fromiter(chain.from_iterable(rows), np.int32, offsets[-1])
    word = np.full(len(tokens), -1, np.int32)
    tags = np.full(len(tokens), UNLABELLED, np.int8)
    word[offsets[:-1]] = 0
    tags[offsets[:-1]] = labels
    arrays = {
        "tokens": tokens,
        "word": word,
        "owned": word == 0,
        "labels": tags,
        "offsets": offsets,
        "sentence": np.arange(len(rows)),
        "word_counts": np.ones(len(rows), np.int64),
    }
    return arrays, shortened


def _split(words: Sequence[str]) -> tuple[Sequence[str], ...]:
    """The words of one text, or of both."""
    if PAIR not in words:
        return (words,)
    place = words.index(PAIR)
    return words[:place], words[place + 1 :]


def _kept(sizes: list[int], room: int) -> list[int]:
    """How many pieces of each text are kept, so that they fit into ``room`` together."""
    if sum(sizes) <= room:
        return sizes
    if len(sizes) == 1:
        return [room]
    shorter = min(*sizes, room // 2)
    return [shorter, room - shorter] if sizes[0] <= sizes[1] else [room - shorter, shorter]
