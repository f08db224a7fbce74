"""Accuracy, macro-F1 and MCC equal their definitions and scikit-learn's; the page shows them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xdistil_jax.labels import ClassSet
from xdistil_jax.report import page
from xdistil_jax.report.classes import ClassScores, read_scores, score_classes
from xdistil_jax.report.metrics import retention, score
from xdistil_jax.scoring import class_counts, f1, language_mean

CLASSES = ClassSet(("a", "b", "c", "d"))
CODES = ("de", "en", "ta")
# A guess is the truth half of the time, so that figures lie anywhere.
TEXTS = st.lists(
    st.tuples(
        st.sampled_from(CLASSES.classes), st.sampled_from((*CLASSES.classes, *[None] * 4)),
        st.sampled_from(CODES),
    ),
    min_size=1, max_size=40,
)  # fmt: skip


def columns(texts):
    gold = [(truth,) for truth, _, _ in texts]
    return gold, [(guess or truth,) for truth, guess, _ in texts], [code for *_, code in texts]


def reference(gold, predicted):
    """(accuracy, macro-F1, MCC) in percent, from indicators: MCC is their correlation."""
    truth, guess = (np.array([label for (label,) in side]) for side in (gold, predicted))
    there = np.union1d(truth, guess)
    scores = []
    for name in there:
        right = np.sum((truth == name) & (guess == name))
        scores.append(2 * right / (np.sum(truth == name) + np.sum(guess == name)))
    t, g = (side[:, None] == there[None] for side in (truth, guess))
    covariance = [
        sum(np.mean(x[:, k] * 1.0 * y[:, k]) - x[:, k].mean() * y[:, k].mean()
            for k in range(len(there)))
        for x, y in ((t, g), (t, t), (g, g))
    ]  # fmt: skip
    both, true, said = covariance
    mcc = both / np.sqrt(true * said) if min(true, said) > 1e-12 else 0.0
    return 100 * np.mean(truth == guess), 100 * np.mean(scores), 100 * mcc


@settings(deadline=None)
@given(TEXTS)
@example([("a", None, "de")])
@example([("a", "b", "de"), ("b", "a", "de")])
def test_figures_equal_their_definitions(texts):
    gold, predicted, languages = columns(texts)
    scores = score_classes(gold, predicted, languages)
    np.testing.assert_allclose(scores.overall[:3], reference(gold, predicted), atol=1e-9)
    assert scores.overall.support == len(texts)
    for code, figures in scores.languages.items():
        chosen = [place for place, each in enumerate(languages) if each == code]
        part = [[side[place] for place in chosen] for side in (gold, predicted)]
        np.testing.assert_allclose(figures[:3], reference(*part), atol=1e-9)
        assert scores.sentences[code] == figures.support == len(chosen)
    assert scores.mean == pytest.approx(np.mean([f.accuracy for f in scores.languages.values()]))
    assert scores.std == pytest.approx(np.std([f.accuracy for f in scores.languages.values()]))
    assert read_scores(json.loads(json.dumps(scores.to_json()))) == scores


@settings(deadline=None)
@given(TEXTS)
def test_figures_equal_scikit_learns(texts):
    metrics = pytest.importorskip("sklearn.metrics")
    gold, predicted, languages = columns(texts)
    scores = score_classes(gold, predicted, languages)
    sides = [label for (label,) in gold], [label for (label,) in predicted]
    wanted = (
        metrics.accuracy_score(*sides),
        metrics.f1_score(*sides, average="macro", zero_division=0),
        metrics.matthews_corrcoef(*sides),
    )
    np.testing.assert_allclose(scores.overall[:3], 100 * np.array(wanted), atol=1e-9)
    each = metrics.precision_recall_fscore_support(
        *sides, labels=list(scores.classes), zero_division=0
    )
    np.testing.assert_allclose(
        np.array([one for one in scores.classes.values()])[:, :3].T, 100 * np.array(each[:3])
    )


@settings(deadline=None)
@given(TEXTS)
def test_counts_in_the_program_give_the_accuracy(texts):
    gold, predicted, languages = columns(texts)
    scores = score_classes(gold, predicted, languages)
    numbers = [jnp.array([CLASSES.index[label] for (label,) in side]) for side in (gold, predicted)]
    group = jnp.array([CODES.index(code) for code in languages])
    counts = jax.jit(class_counts, static_argnames="groups")(*numbers, group, groups=len(CODES))
    found = dict(zip(CODES, 100 * np.asarray(f1(counts)), strict=True))
    for code, figures in scores.languages.items():
        assert found[code] == pytest.approx(figures.accuracy, abs=1e-4)
    assert 100 * float(language_mean(counts)) == pytest.approx(scores.mean, abs=1e-4)


def test_filled_up_texts_are_not_counted():
    same, group = jnp.zeros(3, jnp.int32), jnp.array([0, -1, 1])
    counts = class_counts(same, jnp.array([0, 0, 1]), group, groups=2)
    assert [column.tolist() for column in counts] == [[1, 0], [1, 1], [1, 1]]


def test_the_likeliest_class_is_said_whatever_the_decoding():
    logits = np.array([[0.0, 2.0, 1.0, -1.0], [3.0, 0.0, 0.0, 0.0]], np.float32)
    for decoding in ("iob2", "argmax"):
        assert CLASSES.decode(CLASSES.best(logits, decoding)) == ("b", "a")


@pytest.mark.parametrize(
    ("gold", "predicted", "languages", "complaint"),
    [
        ([("a",)], [("a",)], ["de", "de"], r"as many .* as texts \(1\)"),
        ([("a",), ()], [("a",), ("b",)], ["de", "fr"], r"text 1 \(fr\): expected one class"),
        ([("a",)], [("a", "b")], ["de"], r"text 0 \(de\): expected one class"),
    ],
)
def test_what_is_no_classification_is_refused(gold, predicted, languages, complaint):
    with pytest.raises(ValueError, match=complaint):
        score_classes(gold, predicted, languages)


def _rows():
    gold = [("a",), ("a",), ("b",), ("b",)]
    teacher = score_classes(gold, gold, ["de", "de", "fr", "fr"])
    student = score_classes(gold, [("a",), ("b",), ("b",), ("b",)], ["de", "de", "fr", "fr"])
    kept = retention(student, teacher)
    return [
        page.Row("teacher", teacher, None, 1000, None, None, None, None),
        page.Row("student", student, student, 100, 10.0, kept, 2.0, 1.0),
    ]


def test_the_page_and_the_table_show_what_is_of_classes():
    report = page.compose(
        _rows(), title="toy", split="dev", test_readings=0, seed=0, configuration={}, versions={}
    )
    text = page.render(json.loads(json.dumps(report)))
    squeezed = "\n".join(" ".join(line.split()) for line in page.table(_rows()).splitlines())
    for line in (
        "accuracy teacher student", "de 100.0 50.0", "fr 100.0 100.0",
        "mean ± std 100.0 ± 0.0 75.0 ± 25.0", "accuracy, all texts 100.0 75.0",
        "macro-F1 100.0 73.3", "MCC 100.0 57.7", "% of teacher's accuracy kept — 75.0",
        "unseen: MCC — 57.7",
    ):  # fmt: skip
        assert line in squeezed.splitlines()
    assert "| MCC | 100.0 | 57.7 |" in text
    assert "seqeval" not in text
    assert "Matthews" in text
    assert "| class b | — | — | — | 66.7 | 100.0 | 80.0 | 2 |  |" in text
    assert "| de | 50.0 | 33.3 | 0.0 | — | — | — | 2 |  |" in text


def test_records_of_tags_are_still_read():
    record = score([("B-PER",)], [("B-PER",)], ["de"]).to_json()
    assert not isinstance(read_scores(record), ClassScores)
    assert read_scores(record).mean == 100
