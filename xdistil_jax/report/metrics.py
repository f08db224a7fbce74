"""Entity precision, recall and F1 by language: what is reported. The home of seqeval.

Word level, sentence by sentence, in percent. seqeval's default mode (that of conlleval) decides;
its strict mode with IOB2, in which a stray I- is no entity, stands beside it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from xdistil_jax.labels import split_tag


class Figures(NamedTuple):
    """Percentages, and the number of gold entities; all None where there is no gold entity."""

    precision: float | None
    recall: float | None
    f1: float | None
    strict_f1: float | None
    support: int


Detail = tuple[str, tuple[float | None, ...], int, int | None]
"""A line of the page: whose it is, percentages, support, and a number of sentences."""


class Scores(NamedTuple):
    """All figures of one model on one set of sentences."""

    languages: dict[str, Figures]
    types: dict[str, Figures]
    micro: Figures
    sentences: dict[str, int]

    @property
    def undefined(self) -> tuple[str, ...]:
        """Languages without a gold entity: they have no F1 and are left out of the mean."""
        return tuple(name for name, figures in self.languages.items() if figures.support == 0)

    @property
    def mean(self) -> float | None:
        """Mean F1 over the languages; None if no language has a gold entity."""
        return fmean(self._defined()) if self._defined() else None

    @property
    def std(self) -> float | None:
        """Population standard deviation of F1 over the languages."""
        return pstdev(self._defined()) if self._defined() else None

    @property
    def figure(self) -> str:
        """What ``mean`` is the mean of."""
        return "F1"

    @property
    def explained(self) -> str:
        """How it was scored, for the page."""
        return (
            "F1 in percent: entities, word level, sentence by sentence, seqeval's default mode. "
            "The standard deviation is that of the population of languages."
        )

    def of_language(self, name: str) -> float | None:
        """The figure of one language."""
        found = self.languages.get(name)
        return found.f1 if found else None

    def summary(self) -> list[tuple[str, float | None]]:
        """Figures over all sentences, by name."""
        return [("micro-F1", self.micro.f1)]

    def details(self) -> tuple[str, list[str], list[Detail]]:
        """(heading, names of the columns, lines): all figures."""
        head = ["precision", "recall", "F1", "strict F1", "entities", "sentences"]
        count = sum(self.sentences.values())
        lines = [
            (n, each[:4], each.support, self.sentences[n]) for n, each in self.languages.items()
        ]
        lines.append(("all (micro)", self.micro[:4], self.micro.support, count))
        lines += [(f"type {n}", each[:4], each.support, None) for n, each in self.types.items()]
        return "Precision, recall, strict mode", head, lines

    def _defined(self) -> list[float]:
        return [figures.f1 for figures in self.languages.values() if figures.f1 is not None]

    def to_json(self) -> dict[str, Any]:
        """JSON types; what follows from the rest (mean, std, undefined) is there for readers."""
        return {
            "mean": self.mean,
            "std": self.std,
            "undefined": list(self.undefined),
            "micro": self.micro._asdict(),
            "types": {name: figures._asdict() for name, figures in self.types.items()},
            "languages": {name: figures._asdict() for name, figures in self.languages.items()},
            "sentences": dict(self.sentences),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Scores":
        """The inverse of ``to_json``."""
        return cls(
            {name: Figures(**figures) for name, figures in record["languages"].items()},
            {name: Figures(**figures) for name, figures in record["types"].items()},
            Figures(**record["micro"]),
            dict(record["sentences"]),
        )


class _Counts(NamedTuple):
    """_Entities by (language, type)."""

    correct: Counter[tuple[str, str]]
    predicted: Counter[tuple[str, str]]
    gold: Counter[tuple[str, str]]

    def f1(self, keys: set[tuple[str, str]]) -> tuple[float, float, float, int]:
        """Precision, recall, F1 and support over the union of ``keys``; 0 where undefined."""
        correct, predicted, gold = (sum(counter[key] for key in keys) for counter in self)
        return (
            100 * correct / max(predicted, 1),
            100 * correct / max(gold, 1),
            200 * correct / max(predicted + gold, 1),
            gold,
        )


_Entities = list[set[tuple[str, int, int]]]


def entities(sentences: Sequence[Sequence[str]]) -> _Entities:
    """(type, first word, last word) of each sentence's entities, as seqeval's default mode has."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [set(get_entities(list(tags))) for tags in sentences]


def _strict_entities(sentences: Sequence[Sequence[str]]) -> _Entities:
    from seqeval import scheme

    found = scheme.Entities([list(tags) for tags in sentences], scheme.IOB2).entities
    return [{entity.to_tuple()[1:] for entity in sentence} for sentence in found]


def _count(gold: _Entities, predicted: _Entities, languages: Sequence[str]) -> _Counts:
    counts = _Counts(Counter(), Counter(), Counter())
    for truth, guess, language in zip(gold, predicted, languages, strict=True):
        for counter, entities in zip(counts, (truth & guess, guess, truth), strict=True):
            counter.update((language, entity[0]) for entity in entities)
    return counts


def _check(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], languages: Sequence[str]
) -> None:
    if not len(gold) == len(predicted) == len(languages):
        raise ValueError(
            f"expected as many predicted sentences and languages as gold sentences ({len(gold)}), "
            f"found {len(predicted)} and {len(languages)}"
        )
    for number, (truth, guess) in enumerate(zip(gold, predicted, strict=True)):
        if len(truth) != len(guess):
            raise ValueError(
                f"sentence {number} ({languages[number]}): expected one predicted tag for each of "
                f"its {len(truth)} words, found {len(guess)}; score words, not pieces"
            )
    for tag in set(chain.from_iterable(chain(gold, predicted))):
        split_tag(tag)


def score(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], languages: Sequence[str]
) -> Scores:
    """Score IOB2 tags: one sequence, and one language, for each sentence.

    Raises:
        ValueError: naming the sentence whose gold and predicted tags differ in number, or a tag
            that is not IOB2.
    """
    _check(gold, predicted, languages)
    default = _count(entities(gold), entities(predicted), languages)
    strict = _count(_strict_entities(gold), _strict_entities(predicted), languages)
    keys = set(chain(default.gold, default.predicted, strict.gold, strict.predicted))

    def figures(chosen: set[tuple[str, str]]) -> Figures:
        precision, recall, f1, support = default.f1(chosen)
        if support == 0:
            return Figures(None, None, None, None, 0)
        return Figures(precision, recall, f1, strict.f1(chosen)[2], support)

    sentences = Counter(languages)
    return Scores(
        {name: figures({key for key in keys if key[0] == name}) for name in sorted(sentences)},
        {
            kind: figures({key for key in keys if key[1] == kind})
            for kind in sorted({kind for _, kind in keys})
        },
        figures(keys),
        {name: sentences[name] for name in sorted(sentences)},
    )


def retention(student: Scores, teacher: Scores) -> float | None:
    """Percent of the teacher's mean F1 that the student keeps; None if that is 0 or undefined.

    Raises:
        ValueError: if the two were not scored on the same sentences.
    """
    for field in ("sentences", "undefined"):
        if getattr(student, field) != getattr(teacher, field):
            raise ValueError(
                f"expected student and teacher scored on the same sentences, but {field} differ: "
                f"{getattr(student, field)} and {getattr(teacher, field)}"
            )
    if not teacher.mean or student.mean is None:
        return None
    return 100 * student.mean / teacher.mean
