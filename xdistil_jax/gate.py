"""The gate: all artefacts of a student answer the dev set, and none may lose what was evaluated."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.encode import EncodedStore, encode_in_memory, pieces, stitch
from xdistil_jax.data.readers import PAIR
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
class DevSet:
    """Labelled sentences, encoded as words and as text: each artefact is asked the same.

    ``split[s]`` are the words that the splitter finds in sentence s; none of a text to classify.
    """

    bundle: Bundle
    sentences: tuple[Sentence, ...]
    split: tuple[tuple[Word, ...], ...]
    as_words: EncodedStore
    as_text: EncodedStore

    @classmethod
    def of(cls, bundle: Bundle, sentences: Sequence[Sentence]) -> "DevSet":
        """Encode ``sentences``; those without tags have nothing to say.

        Raises:
            ValueError: if none is left.
        """
        labelled = tuple(each for each in sentences if each.tags is not None)
        if not labelled:
            raise ValueError("there is no labelled dev sentence to evaluate the artefacts on")
        if isinstance(bundle.tagset, ClassSet):
            split = tuple(() for _ in labelled)
            texts = [each._replace(words=_split_again(each.words)) for each in labelled]
        else:
            split = tuple(tuple(split_words(" ".join(each.words))) for each in labelled)
            texts = [
                each._replace(words=tuple(word.text for word in words))
                for each, words in zip(labelled, split, strict=True)
            ]
        options = {"max_length": bundle.max_length}
        stores = (
            encode_in_memory(each, bundle.tokenizer, bundle.tagset, **options)
            for each in (labelled, texts)
        )
        return cls(bundle, labelled, split, *stores)

    def ask(self, forward: Forward) -> Answers:
        """The answers of one artefact, scored."""
        logits = piece_logits(self.as_words, forward)
        said = self._tags(self.as_words, logits)
        read = self._tags(self.as_text, piece_logits(self.as_text, forward))
        gold = [each.tags or () for each in self.sentences]
        languages = [each.language for each in self.sentences]
        if isinstance(self.bundle.tagset, ClassSet):
            both = [score_classes(gold, tags, languages) for tags in (said, read)]
            return Answers(*both, logits)
        pairs = [
            _as_tags(_in_text(each), [Span(k, w[a].start, w[b - 1].end) for k, a, b in spans(tags)])
            for each, w, tags in zip(self.sentences, self.split, read, strict=True)
        ]
        text = score([truth for truth, _ in pairs], [guess for _, guess in pairs], languages)
        return Answers(score(gold, said, languages), text, logits)

    def _tags(self, store: EncodedStore, logits: Float[np.ndarray, "N C"]) -> list[tuple[str, ...]]:
        tagset, decoding = self.bundle.tagset, self.bundle.decoding
        return [tagset.decode(tagset.best(each, decoding)) for each in stitch(store, logits)]


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


def _split_again(words: Sequence[str]) -> tuple[str, ...]:
    """The words of a text, or of a pair, as they come out of the text that they make up."""
    parts = " ".join(words).split(PAIR)
    first, *others = (words_of(part) for part in parts)
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
