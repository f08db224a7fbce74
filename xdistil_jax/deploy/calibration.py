"""Scores that mean what they say: a temperature fitted on dev, and how far scores are off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xdistil_jax.data.record import Sentence
from xdistil_jax.data.windows import bounds
from xdistil_jax.deploy.scores import Scorer, softmax
from xdistil_jax.deploy.words import Student, word_logits
from xdistil_jax.labels import ClassSet, spans

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

_ENOUGH = 500
"""Sentences: one number is fitted to them."""
_SHARPEST, _FLATTEST, _GRID = 0.05, 20.0, 25
_GOLDEN = (5**0.5 - 1) / 2
_LEAST = 1e-30


class Calibration(NamedTuple):
    """Expected calibration errors, from 0 to 1, without a temperature and with the bundle's.

    ``entities`` and ``words`` (of a classifier: texts) were counted; None where there was none.
    """

    temperature: float
    entity_before: float | None
    entity_after: float | None
    word_before: float | None
    word_after: float | None
    entities: int
    words: int


def fit_temperature(student: Student, dev: Sequence[Sentence]) -> float:
    """The temperature, from 0.05 to 20, under which the labels of dev are likeliest, word by word.

    A word's probability is here that of its softmax alone: fitted to marginals of the chain, which
    forgives a student what no valid sequence allows, entities came out less well calibrated (two
    students of English, one try each). Of many sentences
    500, spread evenly over them, are read; those without labels don't count. Without any the
    temperature is 1.
    """
    places = np.linspace(0, len(dev) - 1, min(len(dev), _ENOUGH)).round().astype(int)
    logits, gold, _ = _labelled(student, [dev[place] for place in places])
    if not len(gold):
        return 1.0

    def cost(temperature: float) -> float:
        odds = softmax(logits, temperature)[np.arange(len(gold)), gold]
        return float(-np.log(np.maximum(odds, _LEAST)).mean())

    return round(find_lowest(cost, _SHARPEST, _FLATTEST), 4)


def find_lowest(cost: Callable[[float], float], least: float, most: float) -> float:
    """Where ``cost`` is lowest between two positive numbers: on a grid of logarithms, and then by
    golden section beside its best point."""
    grid = np.linspace(np.log(least), np.log(most), _GRID)
    best = int(np.argmin([cost(float(np.exp(point))) for point in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    while high - low > 1e-4:
        one, other = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if cost(float(np.exp(one))) <= cost(float(np.exp(other))):
            high = other
        else:
            low = one
    return float(np.exp((low + high) / 2))


def calibration_error(
    scores: Float[np.ndarray, "N"], right: Bool[np.ndarray, "N"], bins: int = 15
) -> float | None:
    """Expected calibration error: in bins of equal width, |mean score - share right|, weighted."""
    if not len(scores):
        return None
    places = np.minimum((np.asarray(scores) * bins).astype(int), bins - 1)
    gaps = np.bincount(places, np.asarray(scores, np.float64) - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(scores))


def measure_calibration(student: Student, dev: Sequence[Sentence]) -> Calibration:
    """How far the scores of what the student finds in labelled text are off."""
    logits, gold, edges = _labelled(student, dev)
    temperature = student.bundle.temperature
    found = [_judge(student, logits, gold, edges, each) for each in (1.0, temperature)]
    (before, right, spans_before, spans_right), (after, _, spans_after, _) = found
    return Calibration(
        temperature,
        calibration_error(spans_before, spans_right),
        calibration_error(spans_after, spans_right),
        calibration_error(before, right),
        calibration_error(after, right),
        len(spans_right),
        len(right),
    )


def _judge(
    student: Student,
    logits: Float[np.ndarray, "W C"],
    gold: Int[np.ndarray, "W"],
    edges: Int[np.ndarray, "S+1"],
    temperature: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(scores of words, are they right, scores of entities, are they right)."""
    tagset, decoding = student.bundle.tagset, student.bundle.decoding
    scores: list[float] = []
    right: list[bool] = []
    if isinstance(tagset, ClassSet):
        best = logits.argmax(-1)
    else:
        best = tagset.best_of_each(logits, edges, decoding)
        scorer = Scorer(logits, edges, tagset, decoding, temperature)
        for number, (start, end) in enumerate(pairwise(edges.tolist())):
            found = spans(tagset.decode(best[start:end]))
            scores += scorer.of_spans(number, best[start:end], found)
            real = set(spans(tagset.decode(gold[start:end])))
            right += [span in real for span in found]
    words = _word_odds(student, logits, edges, temperature, best)
    return words, best == gold, np.array(scores), np.array(right, bool)


def _word_odds(
    student: Student,
    logits: Float[np.ndarray, "W C"],
    edges: Int[np.ndarray, "S+1"],
    temperature: float,
    labels: Int[np.ndarray, "W"],
) -> Float[np.ndarray, "W"]:
    """The probability of each word's, or text's, label."""
    tagset = student.bundle.tagset
    if isinstance(tagset, ClassSet):
        return softmax(logits, temperature)[np.arange(len(labels)), labels]
    return Scorer(logits, edges, tagset, student.bundle.decoding, temperature).of_tags(labels)


def _labelled(
    student: Student, sentences: Sequence[Sentence]
) -> tuple[Float[np.ndarray, "W C"], Int[np.ndarray, "W"], Int[np.ndarray, "S+1"]]:
    """(logits and gold labels of the words of all that have labels, where each begins)."""
    index = student.bundle.tagset.index
    kept = [each for each in sentences if each.tags and all(tag in index for tag in each.tags)]
    gold = np.array([index[tag] for each in kept for tag in each.tags or ()], np.int64)
    logits = np.concatenate([np.zeros((0, len(index))), *word_logits(student, kept)])
    return logits, gold, bounds(np.array([len(each.tags or ()) for each in kept], np.int64))
