"""The reported figures are seqeval's."""

import json
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
from seqeval.scheme import IOB2

from xdistil_jax.report.metrics import Scores, retention, score

# A type with an X, which the code of the paper took for a piece inside of a word.
_tag = st.sampled_from(["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-TAX", "I-TAX"])
_sentence = st.integers(0, 6).flatmap(
    lambda size: st.tuples(
        st.lists(_tag, min_size=size, max_size=size),
        st.lists(_tag, min_size=size, max_size=size),
        st.sampled_from(["de", "en", "fi"]),
    )
)
GOLD = [["B-PER", "I-PER", "O"], ["B-LOC", "O"], ["O", "O"]]
GUESS = [["B-PER", "I-PER", "O"], ["I-LOC", "B-PER"], ["O", "B-PER"]]
LANGUAGES = ["en", "de", "fi"]


def _percent(function, gold, guess, **options):
    return pytest.approx(100 * function(gold, guess, zero_division=0, **options))


@settings(deadline=None, max_examples=150)
@given(st.lists(_sentence, min_size=1, max_size=8))
def test_figures_equal_seqeval(sentences):
    gold, guess, languages = (list(column) for column in zip(*sentences, strict=True))
    scores = score(gold, guess, languages)
    assert list(scores.languages) == sorted(set(languages))
    for name, figures in [*scores.languages.items(), (None, scores.micro)]:
        chosen = [each for each in sentences if name in (None, each[2])]
        truth, answer = [each[0] for each in chosen], [each[1] for each in chosen]
        if figures.support == 0:
            assert figures[:4] == (None,) * 4
            assert all(tag == "O" for tags in truth for tag in tags)
            continue
        assert figures.precision == _percent(precision_score, truth, answer)
        assert figures.recall == _percent(recall_score, truth, answer)
        assert figures.f1 == _percent(f1_score, truth, answer)
        assert figures.strict_f1 == _percent(f1_score, truth, answer, mode="strict", scheme=IOB2)
    by_type = precision_recall_fscore_support(gold, guess, average=None, zero_division=0)
    for kind, precision, recall, f1, support in zip(
        sorted({tag[2:] for tags in gold + guess for tag in tags} - {""}), *by_type, strict=True
    ):
        found = scores.types[kind]
        assert found.support == support
        if support:
            assert found[:3] == pytest.approx((100 * precision, 100 * recall, 100 * f1))


def test_strict_mode_counts_no_stray_inside_tag():
    german = score(GOLD, GUESS, LANGUAGES).languages["de"]
    assert german.f1 == pytest.approx(200 / 3)
    assert german.strict_f1 == 0


def test_languages_without_gold_are_named_and_left_out_of_the_mean():
    scores = score(GOLD, GUESS, LANGUAGES)
    assert scores.undefined == ("fi",)
    figures = [scores.languages[name].f1 for name in ("de", "en")]
    assert scores.mean == pytest.approx(sum(figures) / 2)
    assert scores.std == pytest.approx(statistics.pstdev(figures))
    assert scores.std == pytest.approx(abs(figures[0] - figures[1]) / 2)
    # In the micro-F1 what was found there counts as wrong: 2 of 4 found, 2 of 2 present.
    assert scores.micro.f1 == pytest.approx(200 / 3)


def test_nothing_to_score_is_undefined_and_not_zero():
    scores = score([["O"]], [["B-PER"]], ["en"])
    assert scores.mean is scores.std is scores.micro.f1 is None
    assert retention(scores, scores) is None


def test_json_and_back():
    scores = score(GOLD, GUESS, LANGUAGES)
    record = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert Scores.from_json(record) == scores
    assert record["mean"] == scores.mean
    assert record["undefined"] == ["fi"]
    assert record["sentences"] == {"de": 1, "en": 1, "fi": 1}


def test_retention_is_a_percentage_of_the_teachers_mean():
    teacher, student = score(GOLD, GOLD, LANGUAGES), score(GOLD, GUESS, LANGUAGES)
    assert retention(student, teacher) == pytest.approx(student.mean)
    assert retention(teacher, student) == pytest.approx(100 * 100 / student.mean)
    with pytest.raises(ValueError, match="same sentences"):
        retention(student, score(GOLD[:1], GOLD[:1], ["en"]))
    with pytest.raises(ValueError, match="undefined differ"):
        retention(student, score([*GOLD[:2], ["O", "B-PER"]], GUESS, LANGUAGES))
    with pytest.raises(ValueError, match="sentences differ"):
        retention(student, score(GOLD * 2, GUESS * 2, LANGUAGES * 2))
    nothing = score(GOLD, [["O"] * len(tags) for tags in GOLD], LANGUAGES)
    assert retention(student, nothing) is None


@pytest.mark.parametrize(
    ("gold", "guess", "languages", "message"),
    [
        (GOLD, GUESS[:2], LANGUAGES, "found 2 and 3"),
        (GOLD, GUESS, LANGUAGES[:1], "found 3 and 1"),
        (GOLD, [GUESS[0], ["O"], GUESS[2]], LANGUAGES, r"sentence 1 \(de\).*2 words, found 1"),
        ([["PER"]], [["O"]], ["en"], "'PER' is not IOB2"),
    ],
)
def test_what_does_not_fit_is_refused(gold, guess, languages, message):
    with pytest.raises(ValueError, match=message):
        score(gold, guess, languages)
