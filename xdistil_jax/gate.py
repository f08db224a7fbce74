"""The gate: all artefacts of a student answer the dev set, and none may lose what was evaluated."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.encode import EncodedStore, encode_in_memory, pieces, stitch
from xdistil_jax.data.readers import PAIR, UNDETERMINED
from xdistil_jax.deploy.bundle import Bundle
from xdistil_jax.labels import OUTSIDE, ClassSet, Span, spans
from xdistil_jax.report.classes import AnyScores, score_classes
from xdistil_jax.report.metrics import score
from xdistil_jax.text import Word, split_words, words_of

MOST_LOST = 0.3
"""Points of F1, or of accuracy."""
MOST_OFF = 1e-4
"""Of a logit that is computed in fp32."""
WAYS = {"words": "on words", "text": "on raw text"}

_ROWS, _STEP = 32, 16

Forward = Callable[
    [Int[np.ndarray, "B T"], Int[np.ndarray, "B"]], Float[np.ndarray, "B T C"]
]  # fmt: skip
"""An artefact: pieces and lengths of rows -> logits."""


class GateError(ValueError):
    """An artefact that is worse than the student that was evaluated."""


class Answers(NamedTuple):
    """What an artefact made of a dev set.

    ``words``: scored on the words as they are labelled; ``text``: on the sentence as a text that
    the tagger splits itself, spans compared by characters. ``logits`` are those of all pieces.
    """

    words: AnyScores
    text: AnyScores
    logits: Float[np.ndarray, "N C"]

    def figures(self, way: str) -> dict[str, float]:
        """Those that the gate watches, by name, in percent; none where dev has no entity."""
        scores: AnyScores = getattr(self, way)
        named = {f"mean {scores.figure}": scores.mean, **dict(scores.summary())}
        return {k: v for k, v in named.items() if v is not None and k != "MCC"}


@dataclass(frozen=True)
class Texts:
    """Raw texts, split as the tagger splits them; no words of texts to classify."""

    bundle: Bundle
    split: tuple[tuple[Word, ...], ...]
    store: EncodedStore

    @classmethod
    def of(cls, bundle: Bundle, texts: Sequence[str]) -> "Texts":
        """Split and encode."""
        if isinstance(bundle.tagset, ClassSet):
            split, words = (), [_pair_of(text) for text in texts]
        else:
            split = tuple(tuple(split_words(text)) for text in texts)
            words = [tuple(word.text for word in each) for each in split]
        sentences = [Sentence(each, None, UNDETERMINED) for each in words]
        return cls(bundle, split, _encoded(bundle, sentences))

    def tags(self, forward: Forward) -> list[tuple[str, ...]]:
        """Of the words of each text, or of all of it."""
        return _decoded(self.bundle, self.store, piece_logits(self.store, forward))

    def entities(self, forward: Forward) -> list[list[Span]]:
        """What an artefact finds in each text, in characters."""
        return [
            [Span(kind, words[a].start, words[b - 1].end) for kind, a, b in spans(tags)]
            for words, tags in zip(self.split, self.tags(forward), strict=True)
        ]


@dataclass(frozen=True)
class DevSet:
    """Labelled sentences, encoded as words and as text: each artefact is asked the same."""

    bundle: Bundle
    sentences: tuple[Sentence, ...]
    words: EncodedStore
    texts: Texts

    @classmethod
    def of(cls, bundle: Bundle, sentences: Sequence[Sentence]) -> "DevSet":
        """Encode ``sentences``; those without tags have nothing to say.

        Raises:
            ValueError: if none is left.
        """
        labelled = tuple(each for each in sentences if each.tags is not None)
        if not labelled:
            raise ValueError("there is no labelled dev sentence to evaluate the artefacts on")
        texts = [" ".join(each.words) for each in labelled]
        return cls(bundle, labelled, _encoded(bundle, labelled), Texts.of(bundle, texts))

    def ask(self, forward: Forward) -> Answers:
        """The answers of one artefact, scored."""
        logits = piece_logits(self.words, forward)
        said = _decoded(self.bundle, self.words, logits)
        gold = [each.tags or () for each in self.sentences]
        languages = [each.language for each in self.sentences]
        if isinstance(self.bundle.tagset, ClassSet):
            both = (said, self.texts.tags(forward))
            return Answers(*(score_classes(gold, each, languages) for each in both), logits)
        found = zip(map(_in_text, self.sentences), self.texts.entities(forward), strict=True)
        pairs = [_as_tags(*each) for each in found]
        text = score([truth for truth, _ in pairs], [guess for _, guess in pairs], languages)
        return Answers(score(gold, said, languages), text, logits)


def _encoded(bundle: Bundle, sentences: Sequence[Sentence]) -> EncodedStore:
    return encode_in_memory(
        sentences, bundle.tokenizer, bundle.tagset, max_length=bundle.max_length
    )


def _decoded(
    bundle: Bundle, store: EncodedStore, logits: Float[np.ndarray, "N C"]
) -> list[tuple[str, ...]]:
    best = (bundle.tagset.best(each, bundle.decoding) for each in stitch(store, logits))
    return [bundle.tagset.decode(numbers) for numbers in best]


def piece_logits(store: EncodedStore, forward: Forward) -> Float[np.ndarray, "N C"]:
    """The logits of all pieces; batches have few shapes, as JAX compiles a program for each."""
    found = None
    for rows, width in _batches(store):
        place, real = pieces(store, rows[None], width)
        tokens = np.where(real, store.tokens[place], 0)[0]
        lengths = np.where(rows >= 0, store.lengths[rows], 0)
        logits = forward(tokens, lengths)
        if found is None:
            found = np.zeros((len(store.tokens), logits.shape[-1]), np.float32)
        found[place[real]] = logits[real[0]]
    return found if found is not None else np.zeros((0, 0), np.float32)


def _batches(store: EncodedStore) -> Iterator[tuple[Int[np.ndarray, "B"], int]]:
    """(rows, width), rows of similar length together; -1 is a row without pieces."""
    order = np.argsort(store.lengths, kind="stable")
    for first in range(0, len(order), _ROWS):
        rows = order[first : first + _ROWS]
        width = -(-int(store.lengths[rows].max()) // _STEP) * _STEP
        yield np.pad(rows, (0, _ROWS - len(rows)), constant_values=-1), min(width, store.max_length)


def find_faults(name: str, found: Answers, wanted: Answers, *, exact: bool) -> list[str]:
    """What of an artefact the gate refuses, in sentences; ``exact``: it computes in fp32."""
    faults = []
    off = difference(found, wanted)
    if exact and not off <= MOST_OFF:
        faults.append(f"{name}: a logit differs by {off:.1e}, and may by {MOST_OFF:.0e}")
    for way, said in WAYS.items():
        after = found.figures(way)
        for figure, before in wanted.figures(way).items():
            if not before - after[figure] <= MOST_LOST:
                faults.append(
                    f"{name}: {figure} {said} falls from {before:.2f} to {after[figure]:.2f}, and "
                    f"may by {MOST_LOST} points"
                )
    return faults


def difference(found: Answers, wanted: Answers) -> float:
    """The largest between two logits of the same piece."""
    return float(np.abs(found.logits - wanted.logits).max(initial=0.0))


def examine(
    dev: DevSet, reference: Forward, artefacts: Mapping[str, tuple[Forward, bool]]
) -> tuple[dict[str, Answers], list[str]]:
    """(answers by name, those of the student in JAX under ``""``; faults).

    ``artefacts``: name -> (the artefact, does it compute in fp32?).
    """
    wanted = dev.ask(reference)
    answers, faults = {"": wanted}, []
    for name, (forward, exact) in artefacts.items():
        answers[name] = dev.ask(forward)
        faults += find_faults(name, answers[name], wanted, exact=exact)
    return answers, faults


def _pair_of(text: str) -> tuple[str, ...]:
    """The words of a text to classify; of a pair, with what stands between its two texts."""
    first, *others = (words_of(part) for part in text.split(PAIR))
    return (*first, *(word for part in others for word in (PAIR, *part)))


def _in_text(sentence: Sentence) -> list[Span]:
    """The gold entities in characters of the words joined by spaces."""
    ends = np.cumsum([len(word) + 1 for word in sentence.words]) - 1
    starts = [end - len(word) for end, word in zip(ends, sentence.words, strict=True)]
    return [
        Span(kind, int(starts[a]), int(ends[b - 1])) for kind, a, b in spans(sentence.tags or ())
    ]


def _as_tags(gold: Sequence[Span], found: Sequence[Span]) -> tuple[list[str], list[str]]:
    """Spans of characters as tags of the stretches between all of their ends, to be scored."""
    cuts = sorted({place for each in (*gold, *found) for place in (each.start, each.end)})
    at = {place: number for number, place in enumerate(cuts)}
    tagged = []
    for part in (gold, found):
        tags = [OUTSIDE] * max(len(cuts) - 1, 1)
        for kind, start, end in part:
            tags[at[start] : at[end]] = [f"I-{kind}"] * (at[end] - at[start])
            tags[at[start]] = f"B-{kind}"
        tagged.append(tags)
    return tagged[0], tagged[1]
