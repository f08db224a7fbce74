"""Few labels, languages without any, a student for each language: end to end."""

import json
import pathlib
import shutil
from collections import Counter
from dataclasses import replace
from statistics import fmean, pstdev

import jax
import numpy as np
import pytest

from tests.test_pipeline import StopAfter, compiled_once, lines, shrunk, weights  # noqa: F401
from xdistil_jax import (
    DataSpec,
    Experiment,
    Sentence,
    Session,
    Tagger,
    encode_text,
    load_corpus,
    load_test,
    pipeline,
    prepare_teacher,
)
from xdistil_jax.data.tokenizer import load_tokenizer, train_tokenizer
from xdistil_jax.distill.loop import InterruptedRunError, StopFlag
from xdistil_jax.distill.stages import Schedule, StopRule
from xdistil_jax.distill.strategies import Recipe
from xdistil_jax.session import Trained

LANGUAGES = ("de", "vi")
SHIFT = {"O": "O", "PER": "LOC", "LOC": "ORG", "ORG": "PER"}


def wrong(sentence: Sentence) -> Sentence:
    """With tags that are valid, and false."""
    tags = (tag[:2] * (tag != "O") + SHIFT[tag[2:] or "O"] for tag in sentence.tags)
    return sentence._replace(tags=tuple(tags))


def write(root: pathlib.Path, split: str, sentences: list[Sentence]) -> None:
    for language in {each.language for each in sentences}:
        path = root / language / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = (
            "".join(f"{word}\t{tag}\n" for word, tag in zip(each.words, each.tags, strict=True))
            for each in sentences
            if each.language == language
        )
        path.write_text("\n".join(blocks))


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """Two languages in files: 100 labelled sentences each."""
    made = DataSpec(synthetic=True, languages=LANGUAGES)
    corpus = load_corpus(made)
    write(tmp_path / "ner", "train", list(corpus.train))
    write(tmp_path / "ner", "dev", list(corpus.dev))
    write(tmp_path / "ner", "test", list(load_test(made)))
    return tmp_path / "ner"


def regime(root: pathlib.Path, strategy: str = "D1", **data: object) -> Experiment:
    whole = shrunk(root.parent / "runs", strategy)
    data = DataSpec(root=str(root), **data)
    return replace(whole, data=data, run=replace(whole.run, buckets=1))


@pytest.mark.slow
def test_nothing_but_the_budgeted_labels_is_learned_from(root):
    few = {"labels_per_language": 20, "zero_shot": ("vi",)}
    before = load_corpus(DataSpec(root=str(root), **few))
    first = pipeline.run(regime(root, **few))
    assert any(note.startswith("Labels: 20 sentences") for note in first.report["notes"])
    page = (first.folder / "report.md").read_text()
    assert "| vi (zero-shot) |" in page
    assert "| with labels |" in page
    assert set(first.dev["student"].languages) == {"de", "vi"}

    # All other labels, and those of dev, become false: teacher and student are found again.
    known = {each.words for each in (*before.train, *before.stopping)}
    whole = list(load_corpus(DataSpec(root=str(root))).train)
    write(root, "train", [each if each.words in known else wrong(each) for each in whole])
    write(root, "dev", [wrong(each) for each in before.dev])
    said: list[str] = []
    second = pipeline.run(regime(root, **few), say=said.append)
    assert second.folder == first.folder
    assert not [each for each in said if "fine-tuning" in each or "stages in" in each]
    assert second.dev != first.dev, "dev is what is reported of"

    # Each budget has a teacher of its own, and so has the other choice of languages.
    for other in ({"labels_per_language": 15}, {"zero_shot": ()}, {"dev_from_train": 0.5}):
        chosen = regime(root, **{**few, **other})
        session = Session.start(chosen, only=first.folder)
        with pytest.raises(ValueError, match=r"would now give .*/teacher-"):
            prepare_teacher(session, load_corpus(chosen.data))


@pytest.mark.parametrize("whole", [True, False])
def test_a_label_budget_has_one_teacher_whatever_the_transfer_text(root, whole):
    given = root.parent / "tokenizer"
    train_tokenizer(list(load_corpus(DataSpec(root=str(root))).train), 300).save(given)

    def prepared(transfer: int, only: pathlib.Path | None = None) -> Trained:
        chosen = regime(root, labels_per_language=5, transfer_limit=transfer)
        teacher = replace(chosen.teacher, tokenizer=str(given), whole_vocabulary=whole)
        chosen = replace(chosen, teacher=replace(teacher, recipe=Recipe(stop=StopRule(epochs=1))))
        corpus = load_corpus(chosen.data)
        assert len(corpus.transfer) == transfer
        return prepare_teacher(Session.start(chosen, only=only), corpus)

    first = prepared(20)
    if whole:
        assert first.tokenizer.fingerprint == load_tokenizer(given).fingerprint
        assert prepared(90, only=first.folder).fingerprint == first.fingerprint
    else:
        with pytest.raises(ValueError, match=r"would now give .*/teacher-"):
            prepared(90, only=first.folder)


# --- a student for each language -------------------------------------------------------------

LAST = (("vi", "predict"), ("vi", "jit(predict)"))
EPOCHS = 10
THREE = DataSpec(synthetic=True, languages=("de", "ru", "vi"))


class Compiled:
    """What is compiled or found on disk, by the language that is under way."""

    def __init__(self) -> None:
        self.now, self.programs, self.said = "", Counter(), []

    def say(self, message: str) -> None:
        self.said.append(message)
        if message.startswith("student:"):
            self.now = pathlib.Path(message.split()[-1]).name

    def count(self, event: str, seconds: float, *, fun_name: str = "?", **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.programs[self.now, fun_name] += 1


class StopWithin(StopAfter):
    """Raises the flag at the first call for a language."""

    def __init__(self, language: str, flag: StopFlag) -> None:
        super().__init__(0, flag)
        self.language = language

    def say(self, message: str) -> None:
        self.left = int(message.endswith(f"/{self.language}")) or self.left


def separate(out: pathlib.Path) -> Experiment:
    whole = shrunk(out, "d0")
    # Long enough that the best parameters are not those of the start.
    recipe = Recipe(Schedule(peak=0.03), StopRule(EPOCHS, patience=EPOCHS))
    return replace(whole, data=THREE, tuning=replace(whole.tuning, ce=recipe))


@pytest.fixture(scope="module")
def each(tmp_path_factory):
    out, compiled = tmp_path_factory.mktemp("each"), Compiled()
    jax.monitoring.register_event_duration_secs_listener(compiled.count)
    try:
        return pipeline.run(separate(out), say=compiled.say), compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled.count)


def test_only_the_first_language_compiles(each):
    _, compiled = each
    trained = [message for message in compiled.said if message.startswith("student:")]
    assert [message.rpartition("/")[2] for message in trained] == ["de", "ru", "vi"]
    by_language = Counter(language for language, _ in compiled.programs.elements())
    assert by_language["de"] > 3
    assert not [name for language, name in compiled.programs if language == "ru"]
    # After the last one, figures are made, in two buckets: the teacher's, and those of all students
    # by the same two programs.
    scored = [n for (language, name), n in compiled.programs.items() if (language, name) in LAST]
    assert scored == [4]


def test_each_student_learns_from_its_language_and_the_report_joins_them(each):
    result, _ = each
    assert result.folder.name.startswith("D0-")
    session = Session.start(separate(result.folder.parents[1]))
    corpus = load_corpus(THREE)
    teacher = prepare_teacher(session, corpus)
    text = encode_text(session, corpus, teacher)
    found = {}
    for number, language in enumerate(THREE.languages):
        folder = result.folder / language
        rows = text.labelled[text.ours.language[text.labelled] == number]
        last = lines(folder)[-1]
        assert last["stage_name"] == "ce"
        assert last["pieces"] == EPOCHS * text.ours.lengths[rows].sum()
        found[language] = weights(folder)["head/kernel"]
        assert Tagger.load(folder).bundle.tokenizer.vocab_size == text.tokenizer.vocab_size
    assert not np.array_equal(found["de"], found["ru"])
    student = result.dev["student"]
    scores = [figures.f1 for figures in student.languages.values()]
    assert sorted(student.languages) == sorted(THREE.languages)
    assert student.mean == pytest.approx(fmean(scores))
    assert student.mean > 1.0
    assert student.std == pytest.approx(pstdev(scores))
    assert any(note.startswith("Students: 3, one for each") for note in result.report["notes"])
    kept = json.loads((result.folder / "report.json").read_text())["figures"]["dev"]["models"]
    single = sum(leaf.size for leaf in weights(result.folder / "de").values())
    assert kept["student"]["parameters"] == 3 * single


def test_one_languages_student_is_evaluated_with_the_others(each):
    result, _ = each
    before = sorted(result.folder.parents[1].rglob("*"))
    with pytest.raises(ValueError, match=r"/ru holds the student of one language.* evaluate .*/D0"):
        pipeline.run_again(result.folder / "ru")
    assert sorted(result.folder.parents[1].rglob("*")) == before, "nothing was made"
    assert pipeline.run_again(result.folder).dev == result.dev


@pytest.mark.slow
def test_a_finished_run_is_found_and_an_interrupted_one_goes_on(each, tmp_path):
    result, _ = each
    for teacher in result.folder.parent.glob("teacher-*"):
        shutil.copytree(teacher, tmp_path / result.folder.parent.name / teacher.name)
    flag = StopFlag()
    stopper = StopWithin("ru", flag)
    with pytest.raises(InterruptedRunError, match="saved; repeat"):
        pipeline.run(separate(tmp_path), say=stopper.say, stop=flag, progress=stopper)
    said: list[str] = []
    resumed = pipeline.run(separate(tmp_path), say=said.append)
    assert resumed.folder.name == result.folder.name
    begun = [message.rpartition("/")[2] for message in said if message.startswith("student:")]
    assert begun in (["ru", "vi"], ["vi"])
    for language in THREE.languages:
        for path, leaf in weights(result.folder / language).items():
            np.testing.assert_array_equal(
                leaf, weights(resumed.folder / language)[path], err_msg=f"{language} {path}"
            )
    said.clear()
    tested = pipeline.run_again(resumed.folder, evaluate_test=True, say=said.append)
    assert not said
    assert (tested.dev, tested.report["test_readings"]) == (resumed.dev, 1)
    assert set(tested.test["student"].languages) == set(THREE.languages)


def test_a_language_without_labels_is_named(tmp_path):
    chosen = replace(separate(tmp_path), data=replace(THREE, zero_shot=("vi",)))
    with pytest.raises(ValueError, match=r"vi is not in both train and dev\. .* take D0-S"):
        pipeline.run(chosen)
    assert not list(tmp_path.glob("*/teacher-*")), "told before anything is trained"
