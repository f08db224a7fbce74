"""Whole texts and pairs, end to end: teacher, cache, student, report and bundle."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from xdistil_jax import (
    DataSpec,
    Experiment,
    Recipe,
    RunConfig,
    Schedule,
    Session,
    StopRule,
    StudentConfig,
    TeacherConfig,
    Tuning,
    cli,
    finetune,
    load_corpus,
    load_test,
    pipeline,
    student,
)
from xdistil_jax.classification import takes_pairs
from xdistil_jax.data.readers import PAIR, Sentence
from xdistil_jax.data.tokenizer import train_tokenizer
from xdistil_jax.deploy.bundle import load_bundle
from xdistil_jax.deploy.classifier import Classifier
from xdistil_jax.distill.feed import collate
from xdistil_jax.distill.stages import Stage, Term
from xdistil_jax.labels import ClassSet, TagSet
from xdistil_jax.models.checkpoints import save_encoder
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.report.classes import ClassScores
from xdistil_jax.text import words_of

LANGUAGES = ("de", "en", "ru")
ENCODER = {"kind": "transformer", "projection": "gelu"}


def recipe(peak, steps):
    return Recipe(Schedule(peak=peak), StopRule(epochs=4, evaluations=1, min_steps=steps))


def experiment(out, strategy="D4.1", **student):
    """Which language is it? 60 sentences of each, a teacher of one layer."""
    return Experiment(
        name="toy",
        strategy=strategy,
        data=DataSpec(
            synthetic=True, languages=LANGUAGES, task="classification", train_limit=40,
            unlabelled_limit=40,
        ),
        teacher=TeacherConfig(
            width=16, layers=1, heads=2, feed_forward=32, vocab_size=400, max_length=16,
            dropout=0.0, min_f1=50.0, recipe=recipe(1e-2, 150),
        ),
        student=StudentConfig(**{"embed": 8, "hidden": 8, "projection": "linear", **student}),
        tuning=Tuning(
            repr=recipe(1e-2, 40), logit=recipe(1e-2, 80), ce=recipe(5e-3, 40),
            joint=recipe(1e-2, 80),
        ),
        run=RunConfig(out=str(out), held_out=20, latency=False, buckets=1, token_budget=512),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """One compilation cache for all runs of this file."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("jax-cache")))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(out):
    said = []
    return pipeline.run(experiment(out), evaluate_test=True, say=said.append), said


def test_a_teacher_teaches_a_student_to_classify(finished):
    result, said = finished
    assert result.dev["teacher"].mean > 80
    assert result.dev["student"].mean > 80
    assert isinstance(result.test["student"], ClassScores)
    assert result.dev_f1 == result.dev["student"].mean
    assert set(result.dev["student"].classes) == set(LANGUAGES)
    (cut,) = {line for line in said if "were cut" in line and "of 120 texts have over 16" in line}
    report = (result.folder / "report.md").read_text()
    assert all(each in report for each in ("macro-F1", "MCC", cut))
    assert "the likeliest class of each text" in report


def test_selection_watches_the_accuracy_that_is_reported(finished):
    result, _ = finished
    records = [json.loads(line) for line in (result.folder / "metrics.jsonl").open()]
    last = [each for each in records if each["stage_name"] == "ce"]
    best = max(each["dev/f1"] for each in last)
    assert 100 * best == pytest.approx(result.dev["student"].mean, abs=1e-3)
    assert all(each["watched"] == each["dev/f1"] for each in last)


def test_the_bundle_says_what_the_run_scored(finished):
    result, _ = finished
    data = experiment("").data
    sentences = load_test(data)
    classifier = Classifier.load(result.folder)
    assert (classifier.bundle.tagset, classifier.bundle.pairs) == (ClassSet(LANGUAGES), False)
    found = classifier([" ".join(sentence.words) for sentence in sentences])
    right = [one.label == each.tags[0] for one, each in zip(found, sentences, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(result.test["student"].overall.accuracy, abs=0.5)


def test_a_second_run_finds_everything(finished, out):
    again = pipeline.run(experiment(out), evaluate_test=True)
    assert again.report["compilations"]["misses"] == 0
    assert again.test == finished[0].test


@pytest.mark.parametrize(
    ("strategy", "student"),
    [
        pytest.param("D0-S", {"pooling": "max"}, marks=pytest.mark.slow),
        pytest.param("D1", {}, marks=pytest.mark.slow),
        pytest.param("D2", {"pooling": "max"}, marks=pytest.mark.slow),
        pytest.param("D4.2", {"pooling": "max"}, marks=pytest.mark.slow),
        pytest.param("logit-kl-ce", {"vocab_size": 150}, marks=pytest.mark.slow),
        pytest.param(
            "D4.1", {**ENCODER, "layers": 1, "width": 8, "heads": 2}, marks=pytest.mark.slow
        ),
    ],
)
def test_other_strategies_and_students(finished, out, strategy, student):
    result = pipeline.run(experiment(out, strategy, **student))
    assert result.dev["student"].mean > 60
    dev = load_corpus(experiment("").data).dev
    found = Classifier.load(result.folder)([" ".join(sentence.words) for sentence in dev])
    right = [one.label == each.tags[0] for one, each in zip(found, dev, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(result.dev["student"].overall.accuracy, abs=0.5)


def test_of_a_whole_text_the_state_of_cls_is_imitated(finished, out):
    made = experiment(out)
    session, corpus = Session.start(made), load_corpus(made.data)
    teacher = finetune.prepare_teacher(session, corpus)
    text = student.encode_text(session, corpus, teacher)
    cache = student.cache_teacher(session, text, teacher)
    rows, everyone = text.transfer[None, :6], np.zeros(6, bool)
    batch = collate(text.ours, rows, 16, everyone, words_only=cache.words_only)
    assert batch.lengths.min() > 3
    np.testing.assert_array_equal(batch.repr_mask, np.arange(16) == np.zeros((1, 6, 1)))
    np.testing.assert_array_equal(batch.logit_mask, batch.repr_mask)


PAIRED = [
    (f"{a} {b}", f"{c} {d}", int(a == c))
    for a in ("rot", "blau", "grün") for b in ("eins", "zwei") for c in ("rot", "blau", "grün")
    for d in ("drei", "vier")
]  # fmt: skip


def write(path, rows):
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A BERT of random weights, as a Hugging Face folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    text = [Sentence(words_of(f"{a} {b}"), None, "de") for a, b, _ in PAIRED]
    tokenizer = train_tokenizer(text, 80)
    spec = EncoderSpec(tokenizer.vocab_size, 16, 1, 2, 32, positions=32, classes=2)
    save_encoder(
        folder, spec, jax.tree.map(np.asarray, build(spec).init(jax.random.key(0))), ("0", "1")
    )
    tokenizer.save(folder)
    return str(folder)


def test_a_second_text_is_told_apart_in_training_and_after(tmp_path, checkpoint, monkeypatch):
    """By the teacher, fine-tuned and used, and by a student that is a checkpoint's encoder."""
    trained = []

    def at_once(session, folder, spec, params, *rest, **options):
        trained.append(getattr(spec, "encoder", spec))
        return SimpleNamespace(params=params)

    monkeypatch.setattr(finetune, "train_plan", at_once)
    monkeypatch.setattr(student, "train_plan", at_once)
    files = {
        name: write(tmp_path / f"{name}.tsv", PAIRED[first::2])
        for first, name in enumerate(("train", "dev"))
    }
    made = experiment(tmp_path / "runs", "D0-S", **ENCODER, checkpoint=checkpoint)
    data = DataSpec(task="classification", train=files["train"], dev=files["dev"])
    teacher = dataclasses.replace(made.teacher, checkpoint=checkpoint)
    session = Session.start(dataclasses.replace(made, data=data, teacher=teacher))
    corpus = load_corpus(data)
    found = finetune.prepare_teacher(session, corpus)
    _, ours = student.distil(session, corpus, found)
    ends = [found.tokenizer.sep_id, ours.tokenizer.sep_id]
    assert [spec.separator for spec in trained] == ends
    assert [found.spec.separator, ours.spec.encoder.separator] == ends


SMALL = (
    "--teacher.max-length", "16", "--teacher.min-f1", "0", "--teacher.recipe.stop.epochs", "1",
    "--teacher.recipe.stop.min-steps", "4", "--student.embed", "4", "--student.hidden", "4",
    "--tuning.repr.stop.epochs", "1", "--tuning.repr.stop.min-steps", "2",
    "--tuning.logit.stop.epochs", "1", "--tuning.logit.stop.min-steps", "2",
    "--tuning.ce.stop.epochs", "1", "--tuning.ce.stop.min-steps", "2", "--run.buckets", "1",
)  # fmt: skip


@pytest.mark.slow
def test_pairs_from_files_to_the_table(tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = write(tmp_path / "train.tsv", PAIRED[::2])
    dev = write(tmp_path / "dev.tsv", PAIRED[1::4])
    test = write(tmp_path / "test.tsv", PAIRED[3::4])
    more = write(tmp_path / "more.tsv", [row[:2] for row in PAIRED])
    cli.main([
        "distil", "--data.task", "classification", "--train", train, "--dev", dev, "--test", test,
        "--unlabelled", more, "--teacher", checkpoint, "--strategy", "D4.1", *SMALL,
    ])  # fmt: skip
    table = capsys.readouterr().out
    for line in ("accuracy", "macro-F1", "MCC", "% of teacher's accuracy kept"):
        assert any(each.startswith(line) for each in table.splitlines())
    (student,) = tmp_path.glob("runs/distil/D4.1-*/student")
    assert load_bundle(student).pairs is True
    cli.main(["predict", str(student), "rot eins\trot drei"])
    assert capsys.readouterr().out.split("\t")[0] in ("0", "1")
    cli.main(["eval", str(student.parent), "--split", "test"])
    assert "macro-F1" in capsys.readouterr().out


@pytest.fixture
def told(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main(["distil", *arguments, "--data.task", "classification"])
        return " ".join(f"{caught.value.code} {capsys.readouterr().err}".split())

    return run


def test_mistakes_are_answered(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "dev.tsv", [("gut", "1"), ("schlecht", "0")])
    write(tmp_path / "train.tsv", [("gut", "1"), ("schlecht",)])
    files = ("--train", "train.tsv", "--dev", "dev.tsv", "--teacher", "nowhere")
    assert "train.tsv, line 2: 1 column in 'schlecht'; expected text<TAB>class" in told(*files)
    write(tmp_path / "train.tsv", [("gut", "1"), ("schlecht", "2")])
    assert "dev.tsv, line 2: class '0' is none of 1, 2" in told(*files)
    assert "student.pool is mean" in told(*files, "--student.pool", "mean")
    assert "take it without" in told(*files, "--tuning.logit-loss", "logit_all")
    assert "format is 'conll'; expected one of auto, tsv" in told(*files, "--data.format", "conll")
    assert "tagging" in told(*files, "--data.task", "clasification")


def test_what_is_about_words_is_refused(tmp_path):
    whole = experiment(tmp_path)
    given = dataclasses.replace(whole, teacher=dataclasses.replace(whole.teacher, outputs="x"))
    with pytest.raises(ValueError, match=r"teacher.outputs is given, which is about the words"):
        given.plan()
    stages = (Stage("all", (Term("logit_all"),), ("head",)),)
    with pytest.raises(
        ValueError, match=r"ends in _all, which is about the words .*: take it without"
    ):
        dataclasses.replace(whole, stages=stages).plan()
    tagging = dataclasses.replace(whole.data, task="tagging")
    assert dataclasses.replace(whole, stages=stages, data=tagging).plan() == stages


def test_pairs_are_told_by_the_train_set():
    single, tagged = Sentence(("rot",), ("0",), "de"), Sentence(("rot",), ("O",), "de")
    pair = single._replace(words=("rot", PAIR, "eins"))
    classes = ClassSet(("0", "1"))
    assert takes_pairs([pair, pair], classes) is True
    assert takes_pairs([single, single], classes) is False
    assert takes_pairs([tagged], TagSet(("PER",))) is None
