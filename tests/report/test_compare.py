"""The paired bootstrap, against the plain form of what it does."""

import numpy as np
import pytest

from xdistil_jax.report.compare import (
    count_sentences,
    count_texts,
    counts_path,
    paired_bootstrap,
    read_counts,
    write_counts,
)
from xdistil_jax.report.metrics import score

TAGS = [("B-PER", "I-PER", "O"), ("B-LOC", "O"), ("O", "O"), ("B-ORG", "B-LOC")]
LANGUAGES = np.array(["de"] * 30 + ["en"] * 50 + ["fi"] * 7)


def guesses(rate: float, seed: int) -> tuple[list, list]:
    """Gold tags, and a guess that is wrong in some sentences."""
    rng = np.random.default_rng(seed)
    gold = [TAGS[i % len(TAGS)] for i in range(len(LANGUAGES))]
    guess = [tuple("O" for _ in tags) if rng.random() < rate else tags for tags in gold]
    return gold, guess


def counts(rate: float, seed: int) -> np.ndarray:
    return count_sentences(*guesses(rate, seed))


def test_counts_add_up_to_the_reported_f1():
    gold, guess = guesses(0.3, 1)
    found = count_sentences(gold, guess)
    wanted = score(gold, guess, list(LANGUAGES))
    for language, figures in wanted.languages.items():
        correct, predicted, total = found[language == LANGUAGES].sum(axis=0)
        assert 200 * correct / (predicted + total) == pytest.approx(figures.f1)
        assert total == figures.support


def test_counts_of_texts_add_up_to_the_accuracy(tmp_path):
    gold, guess = [("a",), ("b",), ("a",), ("c",)], [("a",), ("a",), ("a",), ("c",)]
    found = count_texts(gold, guess)
    correct, predicted, total = found.sum(axis=0)
    assert 200 * correct / (predicted + total) == 75
    write_counts(path := counts_path(tmp_path, "1a2b"), found, ["de", "de", "en", "fi"])
    read, languages = read_counts(path)
    np.testing.assert_array_equal(read, found)
    assert languages == ["de", "de", "en", "fi"]


def test_the_difference_is_that_of_the_means():
    ones, others = [counts(0.2, 1), counts(0.2, 2)], [counts(0.5, 3)]

    def mean(run):
        rows = (run[language == LANGUAGES].sum(axis=0) for language in ("de", "en", "fi"))
        return np.mean([200 * row[0] / (row[1] + row[2]) for row in rows])

    found = paired_bootstrap(ones, others, LANGUAGES)
    wanted = np.mean([mean(run) for run in ones]) - mean(others[0])
    assert found.difference == pytest.approx(wanted)
    assert found.low < found.difference < found.high
    assert found.p < 0.05


def test_a_draw_takes_the_same_sentences_for_all():
    same = counts(0.4, 5)
    assert paired_bootstrap([same, same], [same], LANGUAGES) == (0.0, 0.0, 0.0, 1.0)


def test_the_interval_is_that_of_drawing_sentences_one_by_one():
    one, other = counts(0.2, 1), counts(0.4, 2)
    rng, plain = np.random.default_rng(9), []
    for _ in range(2000):
        difference = 0.0
        for language in ("de", "en", "fi"):
            rows = np.flatnonzero(language == LANGUAGES)
            rows = rng.choice(rows, len(rows))
            for run, sign in ((one, 1), (other, -1)):
                correct, predicted, gold = run[rows].sum(axis=0)
                difference += sign * 200 * correct / max(predicted + gold, 1) / 3
        plain.append(difference)
    found = paired_bootstrap([one], [other], LANGUAGES)
    low, high = np.percentile(plain, (2.5, 97.5))
    assert found.low == pytest.approx(low, abs=1.5)
    assert found.high == pytest.approx(high, abs=1.5)


def test_a_language_without_entities_has_no_say():
    none = np.array(["xx"] * 9)
    empty = np.zeros((9, 3), np.int32)
    one, other = counts(0.2, 1), counts(0.4, 2)
    both = [np.r_[run, empty] for run in (one, other)]
    found = paired_bootstrap(both[:1], both[1:], np.r_[LANGUAGES, none])
    assert found.difference == paired_bootstrap([one], [other], LANGUAGES).difference


def test_other_sentences_are_refused():
    with pytest.raises(ValueError, match="counts of 87 sentences"):
        paired_bootstrap([counts(0.2, 1)], [counts(0.2, 1)[:-1]], LANGUAGES)
