"""Tag vocabularies, the rules of IOB2, and spans; classes of whole texts.

NumPy only: a deployed student uses it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from xdistil_jax.chains import align

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Decoding = Literal["iob2", "argmax"]
"""How logits become tags: ``iob2`` takes the best of all valid IOB2 sequences of a sentence
(Viterbi, without weights of its own), ``argmax`` the best tag of each word, as the paper does."""

OUTSIDE = "O"
UNLABELLED = -1
"""The label of a piece that carries no tag: inside of a word, special pieces, transfer text."""


class Span(NamedTuple):
    """An entity of one sentence: words ``start`` up to, but not including, ``end``."""

    type: str
    start: int
    end: int


def split_tag(tag: str) -> tuple[str, str]:
    """``"B-PER"`` -> ``("B", "PER")``; ``"O"`` -> ``("O", "")``.

    Raises:
        ValueError: if the tag is neither ``O`` nor of the form ``B-TYPE`` or ``I-TYPE``.
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, kind = tag.partition("-")
    if prefix not in ("B", "I") or not dash or not kind:
        raise ValueError(f"tag {tag!r} is not IOB2: expected O, B-TYPE or I-TYPE")
    return prefix, kind


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of one sentence, read as conlleval and seqeval's default mode read them.

    A stray I- (after O, after another type, or at the start) opens an entity.
    """
    found: list[Span] = []
    start, open_type = 0, ""
    for position, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = split_tag(tag)
        if open_type and (prefix != "I" or kind != open_type):
            found.append(Span(open_type, start, position))
            open_type = ""
        if kind and not open_type:
            start, open_type = position, kind
    return found


def repair(tags: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """IOB1 or stray I- tags -> valid IOB2, and how many tags that changed.

    An I- that doesn't go on with the entity before it becomes a B-.
    """
    fixed: list[str] = []
    changed = 0
    before = ""
    for tag in tags:
        prefix, kind = split_tag(tag)
        if prefix == "I" and kind != before:
            tag = f"B-{kind}"
            changed += 1
        fixed.append(tag)
        before = kind
    return tuple(fixed), changed


@dataclass(frozen=True)
class TagSet:
    """An IOB2 vocabulary. ``tags[0]`` is ``O``; then B-TYPE, I-TYPE for each type in order."""

    types: tuple[str, ...]

    @classmethod
    def of(cls, tags: Iterable[str]) -> "TagSet":
        """The vocabulary of the types that occur in ``tags``, in alphabetical order."""
        return cls(tuple(sorted({split_tag(tag)[1] for tag in tags} - {""})))

    @cached_property
    def tags(self) -> tuple[str, ...]:
        pairs = (f"{prefix}-{kind}" for kind in self.types for prefix in ("B", "I"))
        return (OUTSIDE, *pairs)

    @cached_property
    def index(self) -> dict[str, int]:
        return {tag: number for number, tag in enumerate(self.tags)}

    @cached_property
    def begins(self) -> np.ndarray:
        """bool [C]: is this tag a B-?"""
        return np.array([tag.startswith("B-") for tag in self.tags])

    @cached_property
    def kinds(self) -> np.ndarray:
        """int32 [C]: number of the tag's type, -1 for O."""
        numbers = {kind: number for number, kind in enumerate(self.types)}
        return np.array([numbers.get(split_tag(tag)[1], -1) for tag in self.tags], np.int32)

    @cached_property
    def follows(self) -> np.ndarray:
        """bool [C, C]: may the second tag stand right after the first? A sentence starts as if
        after O."""
        same = self.kinds[:, None] == self.kinds[None, :]
        inside = ~self.begins & (self.kinds >= 0)
        return ~inside[None, :] | same

    def __len__(self) -> int:
        return len(self.tags)

    def decode(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """int [N] -> tags."""
        return tuple(self.tags[number] for number in numbers)

    def best(self, logits: Float[np.ndarray, "W C"], decoding: Decoding) -> Int[np.ndarray, "W"]:
        """The tag numbers of one sentence's words; equal to ``scoring.best_tags``."""
        return self.best_of_each(logits, np.array([0, len(logits)]), decoding)

    def best_of_each(
        self, logits: Float[np.ndarray, "W C"], bounds: Int[np.ndarray, "S+1"], decoding: Decoding
    ) -> Int[np.ndarray, "W"]:
        """``best`` of many sentences: s is the words ``bounds[s]`` up to ``bounds[s + 1]``."""
        best = logits.argmax(-1)
        if decoding == "argmax":
            return best
        # Where the best tags of the words make a valid sequence there is no better one.
        before = np.concatenate([np.zeros(1, best.dtype), best[:-1]])
        before[bounds[:-1][np.diff(bounds) > 0]] = 0
        wrong = np.flatnonzero(~self.follows[before, best])
        if not len(wrong):
            return best
        numbers = np.unique(np.searchsorted(bounds, wrong, "right") - 1)
        at, paths = self._best_paths(logits, bounds[numbers], np.diff(bounds)[numbers])
        best[at] = paths
        return best

    def _best_paths(
        self,
        logits: Float[np.ndarray, "W C"],
        starts: Int[np.ndarray, "S"],
        sizes: Int[np.ndarray, "S"],
    ) -> tuple[Int[np.ndarray, "V"], Int[np.ndarray, "V"]]:
        """Viterbi's of these sentences: their words, and the tag of each."""
        at, parts = align(starts, sizes)
        score = np.zeros((len(starts), len(self)))
        tags, origins = np.zeros(len(at), np.int64), []
        last = np.zeros(len(starts), np.int64)
        for number, part in enumerate(parts):
            word = logits[at[part]]
            if number:
                last[len(word) : len(score)] = score[len(word) :].argmax(1)
                score = score[: len(word)]
                before = np.where(self.follows, score[:, :, None], -np.inf)
                origins.append(before.argmax(1))
                score = before.max(1) - score.max(1, keepdims=True) + word
            else:
                score = np.where(self.follows[0], word, -np.inf)
        last[: len(score)] = score.argmax(1)
        for part, origin in zip(reversed(parts), [None, *reversed(origins)], strict=True):
            if origin is not None:
                rows = np.arange(len(origin))
                last[rows] = origin[rows, last[rows]]
            tags[part] = last[: part.stop - part.start]
        return at, tags


@dataclass(frozen=True)
class ClassSet:
    """The classes of whole texts, in the order of the head's columns."""

    classes: tuple[str, ...]

    @classmethod
    def of(cls, labels: Iterable[str]) -> "ClassSet":
        """The classes that occur: in alphabetical order, or, if all are integers, by value."""
        found = sorted(set(labels))
        if all(re.fullmatch(r"[+-]?[0-9]+", label) for label in found):
            found.sort(key=int)
        return cls(tuple(found))

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the head's columns, as ``TagSet.tags``."""
        return self.classes

    @cached_property
    def index(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.classes)

    def decode(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """int [N] -> classes."""
        return tuple(self.classes[number] for number in numbers)

    def best(self, logits: Float[np.ndarray, "W C"], decoding: Decoding) -> Int[np.ndarray, "W"]:
        """The number of the likeliest class, whatever ``decoding`` says."""
        return logits.argmax(-1)


Labels = TagSet | ClassSet
"""What a head's columns mean: tags of words, or classes of whole texts."""
