"""The classifier without JAX equals the JAX student, on any text and any pair."""

import io
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.deploy.test_tagger import NASTY
from tests.deploy.toys import MAX_LENGTH, TOKENIZER, save_toy, toy_spec
from xdistil_jax import cli
from xdistil_jax.data.encode import encode_in_memory
from xdistil_jax.data.readers import PAIR, Sentence
from xdistil_jax.deploy.bundle import BundleError, load_bundle
from xdistil_jax.deploy.classifier import Classifier
from xdistil_jax.deploy.tagger import Tagger
from xdistil_jax.labels import ClassSet
from xdistil_jax.models.functional import build
from xdistil_jax.text import words_of

CLASSES = ClassSet(("10", "schlecht", "gut", "weiß nicht", "x"))
TEXTS = [*NASTY, ("Anna Berg", "fuhr nach Berlin"), ("Anna " * 20, "Berg"), ("", "Москва 東京")]


def spec_of(pool):
    return replace(toy_spec(pool=pool), classes=len(CLASSES))


@pytest.fixture(scope="module", params=["last", "max"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    spec = spec_of(request.param)
    params = save_toy(folder / "student", spec, tagset=CLASSES)
    return folder, spec, params


def test_classes_equal_those_of_the_jax_student(saved):
    folder, spec, params = saved
    found = Classifier.load(folder)(TEXTS)
    assert len(found) == len(TEXTS)
    for text, prediction in zip(TEXTS, found, strict=True):
        parts = [words_of(each) for each in ([text] if isinstance(text, str) else text)]
        words = parts[0] if len(parts) == 1 else (*parts[0], PAIR, *parts[1])
        sentence = Sentence(words, None, "und")
        store = encode_in_memory([sentence], TOKENIZER, CLASSES, max_length=MAX_LENGTH)
        tokens = np.pad(store.tokens, (0, MAX_LENGTH - len(store.tokens)))[None]
        logits = build(spec).apply(params, tokens, store.lengths).logits[0, 0]
        odds = np.asarray(jax.nn.softmax(logits))
        assert prediction.label == CLASSES.classes[odds.argmax()]
        assert prediction.probability == pytest.approx(odds.max(), abs=1e-5)
    assert len({prediction.label for prediction in found}) > 1


def test_what_is_saved_is_what_comes_back(saved):
    bundle = load_bundle(saved[0] / "student")
    assert bundle.tagset == CLASSES
    assert bundle.sizes["pool"] == saved[1].pool


def test_the_order_of_texts_changes_nothing(saved):
    classifier = Classifier.load(saved[0])
    forth, back = classifier(TEXTS), classifier(TEXTS[::-1])[::-1]
    assert [each.label for each in forth] == [each.label for each in back]
    assert classifier([]) == []


def test_taggers_and_classifiers_are_told_apart(saved, tmp_path):
    with pytest.raises(BundleError, match="classifies whole texts: take Classifier"):
        Tagger.load(saved[0])
    save_toy(tmp_path / "tagger")
    with pytest.raises(BundleError, match="tags words: take Tagger"):
        Classifier.load(tmp_path / "tagger")
    save_toy(tmp_path / "other", spec_of("last"), tagset=CLASSES, kind="mlp")
    with pytest.raises(BundleError, match=r"kind: expected one of .*found 'mlp'"):
        Classifier.load(tmp_path / "other")


def test_predict_prints_a_line_for_each_text(saved, capsys, monkeypatch):
    texts = ["Anna Berg fuhr", "nach\tBerlin", ""]
    wanted = Classifier.load(saved[0])(["Anna Berg fuhr", ("nach", "Berlin"), ""])
    lines = [f"{each.label}\t{each.probability:.4f}" for each in wanted]
    cli.main(["predict", str(saved[0]), *texts])
    assert capsys.readouterr().out.splitlines() == lines
    stdin = io.TextIOWrapper(io.BytesIO("\r\n".join([*texts[:2], "", ""]).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    cli.main(["predict", str(saved[0])])
    assert capsys.readouterr().out.splitlines() == lines


def test_predict_answers_mistakes(saved, tmp_path, capsys):
    save_toy(tmp_path / "student")
    for arguments, said in (
        ((), "usage: xdistil predict RUN"),
        ((str(tmp_path / "nothing"), "text"), "config.json is missing"),
        ((str(tmp_path), "text"), "xdistil predict: this student tags words: take Tagger (tag)"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["predict", *arguments])
        assert said in str(caught.value)


PAIR_OF_TEXTS = ("Anna Berg", "fuhr nach Berlin")


@pytest.mark.parametrize(
    ("pairs", "right", "other", "said"),
    [
        (True, PAIR_OF_TEXTS, "Anna", "'Anna' is a single text, .* on pairs: give both as"),
        (False, "Anna", PAIR_OF_TEXTS, "'Anna Berg' is the first .* on single texts: give one"),
    ],
)
def test_a_student_of_pairs_and_one_of_single_texts_are_told_apart(
    tmp_path, capsys, pairs, right, other, said
):
    save_toy(tmp_path / "student", spec_of("last"), tagset=CLASSES, pairs=pairs)
    save_toy(tmp_path / "older" / "student", spec_of("last"), tagset=CLASSES)
    classifier, older = Classifier.load(tmp_path), Classifier.load(tmp_path / "older")
    assert (classifier.bundle.pairs, older.bundle.pairs) == (pairs, None)
    # A folder that doesn't say takes either, as ever.
    [wanted, _] = older([right, other])
    assert classifier([right]) == [wanted]
    with pytest.raises(ValueError, match=said):
        classifier([right, other])
    typed = ["\t".join([text] if isinstance(text, str) else text) for text in (right, other)]
    cli.main(["predict", str(tmp_path), typed[0]])
    assert capsys.readouterr().out == f"{wanted.label}\t{wanted.probability:.4f}\n"
    with pytest.raises(SystemExit, match=f"xdistil predict: {said}"):
        cli.main(["predict", str(tmp_path), typed[1]])


def test_a_classifier_runs_without_jax(saved):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('jax', 'flax', 'datasets', 'tyro')))\n"
        "from xdistil_jax.deploy.classifier import Classifier\n"
        f"print(Classifier.load({str(saved[0])!r})(['Anna'])[0].label)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == Classifier.load(saved[0])(["Anna"])[0].label
