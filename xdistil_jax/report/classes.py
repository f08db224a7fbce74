"""Accuracy, macro-F1 and Matthews correlation of classes, by language: what is reported."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from xdistil_jax.report.metrics import Detail, Scores


class ClassFigures(NamedTuple):
    """In percent: accuracy, macro-F1, Matthews correlation coefficient; and how many texts.

    Macro-F1 is the plain mean of F1 over the classes that are there, or are said to be. MCC is
    Gorodkin's for any number of classes; it is 0 where all texts are, or are said to be, of one.
    """

    accuracy: float
    macro_f1: float
    mcc: float
    support: int


class OneClass(NamedTuple):
    """A class among the others, in percent, and how many texts are of it."""

    precision: float
    recall: float
    f1: float
    support: int


class ClassScores(NamedTuple):
    """All figures of one model on one set of texts; to be read as ``metrics.Scores`` is."""

    languages: dict[str, ClassFigures]
    classes: dict[str, OneClass]
    overall: ClassFigures
    sentences: dict[str, int]

    @property
    def undefined(self) -> tuple[str, ...]:
        """None: each language has texts, and so an accuracy."""
        return ()

    @property
    def mean(self) -> float | None:
        """Mean accuracy over the languages; None if there is no text."""
        return fmean(self._accuracies()) if self.languages else None

    @property
    def std(self) -> float | None:
        """Population standard deviation of accuracy over the languages."""
        return pstdev(self._accuracies()) if self.languages else None

    @property
    def figure(self) -> str:
        """What ``mean`` is the mean of."""
        return "accuracy"

    @property
    def explained(self) -> str:
        """How it was scored, for the page."""
        return (
            "In percent: accuracy by language, its mean and its standard deviation over the "
            "population of languages; over all texts accuracy, macro-F1 and Matthews correlation "
            "(MCC)."
        )

    def of_language(self, name: str) -> float | None:
        """The accuracy in one language."""
        found = self.languages.get(name)
        return found.accuracy if found else None

    def summary(self) -> list[tuple[str, float | None]]:
        """Figures over all texts, by name."""
        overall = self.overall
        return [
            ("accuracy, all texts", overall.accuracy),
            ("macro-F1", overall.macro_f1),
            ("MCC", overall.mcc),
        ]

    def details(self) -> tuple[str, list[str], list[Detail]]:
        """(heading, names of the columns, lines): all figures."""
        head = ["accuracy", "macro-F1", "MCC", "precision", "recall", "F1", "texts", ""]
        three = (None,) * 3
        lines: list[Detail] = [
            (name, (*each[:3], *three), each.support, None)
            for name, each in (*self.languages.items(), ("all", self.overall))
        ]
        lines += [
            (f"class {name}", (*three, *each[:3]), each.support, None)
            for name, each in self.classes.items()
        ]
        return "By language and by class", head, lines

    def _accuracies(self) -> list[float]:
        return [figures.accuracy for figures in self.languages.values()]

    def to_json(self) -> dict[str, Any]:
        """JSON types; what follows from the rest (mean, std) is there for readers."""
        return {
            "mean": self.mean,
            "std": self.std,
            "overall": self.overall._asdict(),
            "classes": {name: figures._asdict() for name, figures in self.classes.items()},
            "languages": {name: figures._asdict() for name, figures in self.languages.items()},
            "sentences": dict(self.sentences),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ClassScores":
        """The inverse of ``to_json``."""
        return cls(
            {name: ClassFigures(**figures) for name, figures in record["languages"].items()},
            {name: OneClass(**figures) for name, figures in record["classes"].items()},
            ClassFigures(**record["overall"]),
            dict(record["sentences"]),
        )


AnyScores = Scores | ClassScores


def read_scores(record: Mapping[str, Any]) -> AnyScores:
    """The inverse of either ``to_json``."""
    return (ClassScores if "classes" in record else Scores).from_json(record)


def score_classes(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], languages: Sequence[str]
) -> ClassScores:
    """Score one class, and one language, for each text.

    Raises:
        ValueError: for another number of predictions than of texts, or a text that hasn't exactly
            one class.
    """
    if not len(gold) == len(predicted) == len(languages):
        raise ValueError(
            f"expected as many predictions and languages as texts ({len(gold)}), found "
            f"{len(predicted)} and {len(languages)}"
        )
    for number, both in enumerate(zip(gold, predicted, strict=True)):
        if [len(each) for each in both] != [1, 1]:
            raise ValueError(
                f"text {number} ({languages[number]}): expected one class and one predicted class"
            )
    flat = [
        (truth[0], guess[0], language)
        for truth, guess, language in zip(gold, predicted, languages, strict=True)
    ]
    pairs = Counter((truth, guess) for truth, guess, _ in flat)
    sentences = Counter(languages)
    by_language = {
        name: _figures(Counter((t, g) for t, g, language in flat if language == name))
        for name in sorted(sentences)
    }
    count = {name: sentences[name] for name in sorted(sentences)}
    return ClassScores(by_language, _by_class(pairs), _figures(pairs), count)


def _by_class(pairs: Counter[tuple[str, str]]) -> dict[str, OneClass]:
    """Of each class that occurs; a share of nothing is 0."""
    truths, guesses = _margins(pairs)
    found = {}
    for name in sorted(truths | guesses):
        right, true, said = pairs[name, name], truths[name], guesses[name]
        precision, recall = right / max(said, 1), right / max(true, 1)
        found[name] = OneClass(100 * precision, 100 * recall, 200 * right / (true + said), true)
    return found


def _margins(pairs: Counter[tuple[str, str]]) -> tuple[Counter[str], Counter[str]]:
    """How often each class is there, and how often it is said."""
    truths, guesses = Counter(), Counter()
    for (truth, guess), count in pairs.items():
        truths[truth] += count
        guesses[guess] += count
    return truths, guesses


def _figures(pairs: Counter[tuple[str, str]]) -> ClassFigures:
    """From how often each class is said of each class."""
    truths, guesses = _margins(pairs)
    total = pairs.total()
    right = sum(count for (truth, guess), count in pairs.items() if truth == guess)
    classes = _by_class(pairs).values()
    # Covariances of the two sides as indicators, times total²: whole numbers, so nothing rounds.
    both = total * right - sum(truths[name] * guesses[name] for name in truths)
    true = total**2 - sum(count**2 for count in truths.values())
    said = total**2 - sum(count**2 for count in guesses.values())
    mcc = 100 * both / sqrt(true * said) if true and said else 0.0
    macro = fmean(each.f1 for each in classes) if classes else 0.0
    return ClassFigures(100 * right / max(total, 1), macro, mcc, total)
