"""The leak check: sentences that stand in two splits, counted by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xdistil_jax.data.readers import Sentence

if TYPE_CHECKING:
    from jaxtyping import Bool


class Overlap(NamedTuple):
    """How many of a split's ``total`` sentences in ``language`` also stand in another split.

    ``shared`` counts those that stand there in the same language, ``anywhere`` in whatever one.
    """

    language: str
    split: str
    within: str
    shared: int
    anywhere: int
    total: int

    @property
    def share(self) -> float:
        """shared / total."""
        return self.shared / self.total


def text_key(sentence: Sentence) -> str:
    """Equal for equal text, however it was cut into words: transfer text is cut by our splitter."""
    return "".join(sentence.words)


def overlap(splits: Mapping[str, Sequence[Sentence]]) -> tuple[Overlap, ...]:
    """For each pair of splits, how much of the later one stands in the earlier one, by language.

    Give the splits in the order train, transfer, dev, test. A sentence counts as often as it
    occurs. Memory is needed for the later split only.
    """
    found: list[Overlap] = []
    for within, split in combinations(splits, 2):
        keys = [(sentence.language, text_key(sentence)) for sentence in splits[split]]
        texts = {text for _, text in keys}
        exact: set[tuple[str, str]] = set()
        for sentence in splits[within]:
            if (text := text_key(sentence)) in texts:
                exact.add((sentence.language, text))
        there = {text for _, text in exact}
        total = Counter(language for language, _ in keys)
        shared = Counter(key[0] for key in keys if key in exact)
        anywhere = Counter(language for language, text in keys if text in there)
        found.extend(
            Overlap(language, split, within, shared[language], anywhere[language], total[language])
            for language in sorted(total)
        )
    return tuple(found)


def unseen(test: Sequence[Sentence], *others: Sequence[Sentence]) -> Bool[np.ndarray, "S"]:
    """Which sentences of ``test`` occur in none of the ``others`` (train, transfer).

    The language doesn't count: one student reads them all. Memory is needed for ``test`` only.
    """
    keys = [text_key(sentence) for sentence in test]
    new = set(keys)
    for split in others:
        for sentence in split:
            new.discard(text_key(sentence))
    return np.array([key in new for key in keys], bool)
