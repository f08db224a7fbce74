"""Text -> spans with character offsets. NumPy, tokenizers and onnxruntime: runs without JAX."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from xdistil_jax.data.record import UNDETERMINED, Sentence
from xdistil_jax.data.windows import bounds
from xdistil_jax.deploy.scores import Scorer
from xdistil_jax.deploy.words import Deployed, word_logits
from xdistil_jax.labels import OUTSIDE, TagSet, spans
from xdistil_jax.text import Word, split_words

Aggregate = Literal["simple", "none"]
"""``simple``: entities. ``none``: every word."""


class Entity(NamedTuple):
    """``text == source[start:end]``, offsets in code points.

    ``score``, from 0 to 1, is how likely the student holds it that just these words, and neither
    fewer nor more, are an entity of this type (see ``deploy.scores``).
    """

    text: str
    type: str
    start: int
    end: int
    score: float


class TaggedWord(NamedTuple):
    """``word == source[start:end]``; ``score`` is the probability of its ``tag``."""

    word: str
    tag: str
    start: int
    end: int
    score: float


class _Tagged(NamedTuple):
    """A text, its words, and what is to be said of them."""

    text: str
    words: list[Word]
    tags: tuple[str, ...]
    scores: np.ndarray
    entities: list[Entity]


class Tagger(Deployed):
    """A deployed student of words."""

    _LABELS = TagSet
    _OTHERWISE = "this student classifies whole texts: take Classifier (predict)"

    @overload
    def __call__(self, texts: str, aggregate: Literal["simple"] = ...) -> list[Entity]: ...
    @overload
    def __call__(self, texts: str, aggregate: Literal["none"]) -> list[TaggedWord]: ...
    @overload
    def __call__(
        self, texts: Sequence[str], aggregate: Literal["simple"] = ...
    ) -> list[list[Entity]]: ...
    @overload
    def __call__(
        self, texts: Sequence[str], aggregate: Literal["none"]
    ) -> list[list[TaggedWord]]: ...
    def __call__(self, texts: str | Sequence[str], aggregate: Aggregate = "simple") -> list[Any]:
        """The entities, or all words, of each text in order; of a single text not in a list.

        Texts may be of any length: long ones are tagged in windows.

        Raises:
            TypeError: for what is no text.
            ValueError: for another way to aggregate.
        """
        if aggregate not in ("simple", "none"):
            raise ValueError(f"aggregate is {aggregate!r}: expected 'simple' or 'none'")
        given = [texts] if isinstance(texts, str) else texts
        if strange := [each for each in given if not isinstance(each, str)]:
            raise TypeError(f"expected a text or a list of texts, found {strange[0]!r:.80}")
        found = self._tag([(text, split_words(text)) for text in given])
        views = [each.entities if aggregate == "simple" else _words(each) for each in found]
        return views[0] if isinstance(texts, str) else views

    def tag_words(
        self, sentences: Sequence[Sequence[str]], aggregate: Aggregate = "simple"
    ) -> list[list[Entity]] | list[list[TaggedWord]]:
        """As a call, of text that is cut into words: offsets are in words joined by single spaces.

        Raises:
            ValueError: for a word that is no text (a lone surrogate).
        """
        found = self._tag([(" ".join(words), _joined(words)) for words in sentences])
        return [each.entities if aggregate == "simple" else _words(each) for each in found]

    def pipeline(
        self,
        inputs: str | Sequence[str],
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] = (OUTSIDE,),
    ) -> list[Any]:
        """The answers of transformers' token-classification pipeline, in its keys.

        ``ner = Tagger.load(DIR).pipeline`` takes the place of ``ner = pipeline("ner", DIR)``. With
        ``"none"`` an answer is a word, with its ``entity`` and ``index``, with any other strategy
        an ``entity_group``: words have one tag here, so all strategies but ``"none"`` are one.

        Raises:
            ValueError: for a strategy that transformers doesn't have.
        """
        strategies = ("none", "simple", "first", "average", "max")
        if aggregation_strategy not in strategies:
            raise ValueError(
                f"aggregation_strategy is {aggregation_strategy!r}: expected "
                f"{', '.join(strategies)}"
            )
        view = _dicts_of_words if aggregation_strategy == "none" else _dicts_of_entities
        texts = [inputs] if isinstance(inputs, str) else inputs
        tagged = self._tag([(text, split_words(text)) for text in texts])
        found = [view(each, ignore_labels) for each in tagged]
        return found[0] if isinstance(inputs, str) else found

    def tags(self, sentences: Sequence[Sentence]) -> list[tuple[str, ...]]:
        """The tag of each word of each sentence."""
        logits, edges = self._logits(sentences)
        best = self.bundle.tagset.best_of_each(logits, edges, self.bundle.decoding)
        return [self.bundle.tagset.decode(best[a:b]) for a, b in pairwise(edges.tolist())]

    def _logits(self, sentences: Sequence[Sentence]) -> tuple[np.ndarray, np.ndarray]:
        """Flat logits [W C], and where each sentence begins [S+1]."""
        found = word_logits(self._student, sentences)
        empty = np.zeros((0, len(self.bundle.tagset)), np.float32)
        return np.concatenate([empty, *found]), bounds(np.array([*map(len, found)], np.int64))

    def _tag(self, texts: Sequence[tuple[str, list[Word]]]) -> list[_Tagged]:
        tagset, decoding = self.bundle.tagset, self.bundle.decoding
        logits, edges = self._logits(
            [Sentence(tuple(word.text for word in words), None, UNDETERMINED) for _, words in texts]
        )
        best = tagset.best_of_each(logits, edges, decoding)
        scorer = Scorer(logits, edges, tagset, decoding, self.bundle.temperature)
        sure, found = scorer.of_tags(best), []
        for number, ((text, words), (a, b)) in enumerate(
            zip(texts, pairwise(edges.tolist()), strict=True)
        ):
            tags = tagset.decode(best[a:b])
            parts = spans(tags)
            scores = scorer.of_spans(number, best[a:b], parts)
            entities = []
            for (kind, first, last), score in zip(parts, scores, strict=True):
                start, end = words[first].start, words[last - 1].end
                entities.append(Entity(text[start:end], kind, start, end, score))
            found.append(_Tagged(text, words, tags, sure[a:b], entities))
        return found


def _joined(words: Sequence[str]) -> list[Word]:
    found, start = [], 0
    for word in words:
        found.append(Word(word, start, start + len(word)))
        start += len(word) + 1
    return found


def _words(tagged: _Tagged) -> list[TaggedWord]:
    each = zip(tagged.words, tagged.tags, tagged.scores.tolist(), strict=True)
    return [TaggedWord(word.text, tag, word.start, word.end, score) for word, tag, score in each]


def _dicts_of_words(tagged: _Tagged, ignored: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "entity": word.tag,
            "score": word.score,
            "index": number,
            "word": word.word,
            "start": word.start,
            "end": word.end,
        }
        for number, word in enumerate(_words(tagged), 1)
        if word.tag not in ignored
    ]


def _dicts_of_entities(tagged: _Tagged, ignored: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "entity_group": each.type,
            "score": each.score,
            "word": each.text,
            "start": each.start,
            "end": each.end,
        }
        for each in tagged.entities
        if each.type not in ignored
    ]
