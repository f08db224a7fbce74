"""Every shipped experiment builds, prints its plan, and is listed in experiments/README.md."""

import dataclasses
import pathlib
import runpy
import sys

import numpy as np
import pytest

from xdistil_jax import Experiment, load_corpus, load_test
from xdistil_jax.distill.stages import describe
from xdistil_jax.distill.strategies import strategies
from xdistil_jax.experiment import restore, settings
from xdistil_jax.planning import load_experiment, load_file
from xdistil_jax.study import Study

FOLDER = pathlib.Path(__file__).parents[1] / "experiments"
FILES = sorted(FOLDER.glob("*.py"))
# The others are scripts: they are run by tests of their own, or need what no test has.
EXPERIMENTS = [file for file in FILES if "\nexperiment = Experiment(" in file.read_text()]
STUDIES = [file for file in FILES if "\nsmall = Study(" in file.read_text()]
NAMES = tuple(strategies(("head", "body")))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_it_builds_and_prints_its_plan(file):
    load = load_experiment(str(file))
    assert isinstance(load(None), Experiment)
    for name in NAMES:
        experiment = load(name)
        printed = describe(experiment.plan())
        assert all(stage.name in printed for stage in experiment.plan())
        assert settings(restore(settings(experiment))) == settings(experiment)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_row_of_a_table_builds_and_prints_its_plan(file):
    studies = {name: each for name, each in load_file(str(file)).items() if isinstance(each, Study)}
    assert {"small", "full"} <= studies.keys()
    for study in studies.values():
        for variant in study.variants:
            assert describe(variant.experiment.plan())
            found = restore(settings(variant.experiment))
            assert settings(found) == settings(variant.experiment)
        assert study.title.startswith(f"Table {file.stem.removeprefix('table')}")


def test_equal_pieces_are_equal():
    """The transfer set has the text of the labelled one, and an epoch of a joint stage both."""
    same = load_file(str(FOLDER / "table3.py"))["same"]
    for row in same.variants:
        both = [0.0 < stage.labelled_fraction < 1.0 for stage in row.experiment.plan()]
        epochs = [stage.stop.epochs for stage in row.experiment.plan()]
        seen = sum(n * (1 + each) for n, each in zip(epochs, both, strict=True))
        assert seen == pytest.approx(9.25), row.name


def test_the_curve_of_table_4_is_that_of_the_parameters_kept():
    records = [
        {"stage_name": "logit/head", "watched": 0.9, "dev/f1": 0.1},
        {"stage_name": "logit/head", "watched": 0.5, "dev/f1": 0.2},
        {"stage_name": "logit/head", "watched": 0.7, "dev/f1": 0.3},
        {"stage_name": "ce/head", "watched": 0.6, "dev/f1": 0.6},
        {"stage_name": "ce/head", "watched": 0.5, "dev/f1": 0.5},
    ]
    kept = load_file(str(FOLDER / "table4.py"))["kept_f1"](records)
    assert kept == pytest.approx({"logit/head": 20, "ce/head": 60})


def test_how_far_embeddings_have_moved():
    moved = load_file(str(FOLDER / "table7.py"))["moved"]
    old = np.diag([4.0, 3.0, 2.0, 1.0]).astype(np.float32)
    assert moved(old, old, 2) == pytest.approx((0.0, 1.0))
    # Twice as long, in the same directions; then the second direction is another one.
    assert moved(old, 2 * old, 2) == pytest.approx((1.0, 1.0))
    assert moved(old, old[:, [0, 2, 1, 3]], 2) == pytest.approx((np.sqrt(26 / 30), 0.5))


def test_text_is_chosen_by_its_worth_as_far_as_there_is_room():
    best = load_file(str(FOLDER / "choose_text.py"))["best"]
    assert best([0.1, 0.9, 0.5, 0.9], [1, 4, 3, 2], 9) == [1, 2, 3]
    assert best([0.1, 0.9, 0.5, 0.9], [1, 4, 3, 2], 8) == [1, 3]
    assert best([0.5, 0.5], [2, 2], 3) == [0]


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("choose_text.py", ["nowhere"], "choose_text.py: nowhere is no student"),
        ("language_id.py", ["--source", "nowhere"], "nowhere: no LANGUAGE.txt in it"),
        ("table4.py", ["nowhere"], "nowhere/metrics.jsonl is not there"),
        ("costs.py", ["--chip", "nope"], "costs.py: "),
    ],
)
def test_a_script_tells_what_is_not_there(script, arguments, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert said in str(ended.value)


def test_the_table_lists_every_file():
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(EXPERIMENTS) >= 2
    assert len(STUDIES) >= 11
    for file in FILES:
        assert f"| `{file.name}` |" in table


WORDS = {
    "de": "und der die das nicht mit",
    "ja": "東京都に行きました",
    "en": "the and of not with it",
}


def snippets_of(folder, monkeypatch):
    """Cut by the script, from thirty lines of three languages."""
    source = folder / "source"
    source.mkdir()
    for code, words in WORDS.items():
        lines = [f"{words} {number} {words[::-1]} {number * 7}." for number in range(30)]
        (source / f"{code}.txt").write_text("\n".join([*lines, "x", *lines]), encoding="utf-8")
    sizes = ("--train", "8", "--dev", "4", "--test", "4", "--unlabelled", "8")
    places = ("--source", str(source), "--data", str(folder / "data"))
    monkeypatch.setattr(sys, "argv", ["language_id.py", *places, *sizes])
    runpy.run_path(str(FOLDER / "language_id.py"), run_name="__main__")
    return folder / "data"


def test_snippets_are_cut_alike_and_stand_in_one_split(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, again = (snippets_of(tmp_path / name, monkeypatch) for name in "ab")
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }
    shipped = load_experiment(str(FOLDER / "language_id.py"))(None).data
    data = dataclasses.replace(shipped, root=str(first), unlabelled_root=str(first))
    corpus, test = load_corpus(data), load_test(data)
    assert corpus.tagset.classes == tuple(sorted(WORDS))
    unlabelled = [s.words for s in corpus.transfer][len(corpus.train) :]
    parts = [[s.words for s in part] for part in (corpus.train, corpus.dev, test)]
    every = [words for part in (*parts, unlabelled) for words in part]
    assert len(every) == len(set(every))
    assert min(map(len, (*parts, unlabelled))) > 3
    assert all(s.tags == (s.language,) for s in (*corpus.train, *corpus.dev, *test))
    assert all(3 <= len(words) <= 8 for words in every)
