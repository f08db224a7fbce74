"""End to end: the quickstart's experiment, shrunk to three languages."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from tests.started import run_and_kill
from xdistil_jax import DataSpec, Experiment, RunConfig, Tagger, cli, pipeline
from xdistil_jax.data import corpus as corpus_module
from xdistil_jax.deploy.bundle import load_bundle
from xdistil_jax.distill.loop import InterruptedRunError, StopFlag
from xdistil_jax.quickstart import experiment as quickstart
from xdistil_jax.report import compilations
from xdistil_jax.teacher.manifest import list_caches


def shrunk(out: pathlib.Path, strategy: str = "D4.2", **run: object) -> Experiment:
    """The shipped quickstart with less text, a smaller teacher and an epoch for each stage."""
    whole = quickstart(strategy, out=str(out))

    def short(recipe):
        stop = dataclasses.replace(recipe.stop, epochs=1, evaluations=1)
        return dataclasses.replace(recipe, stop=stop)

    tuning = dataclasses.replace(
        whole.tuning,
        **{name: short(getattr(whole.tuning, name)) for name in ("repr", "logit", "ce", "joint")},
    )
    return dataclasses.replace(
        whole,
        data=DataSpec(synthetic=True, languages=("de", "ru", "vi")),
        teacher=dataclasses.replace(
            whole.teacher, width=16, layers=1, heads=2, feed_forward=32, vocab_size=400,
            recipe=short(whole.teacher.recipe), min_f1=0.0,
        ),
        student=dataclasses.replace(whole.student, embed=8, hidden=8),
        tuning=tuning,
        run=dataclasses.replace(whole.run, held_out=40, latency=False, buckets=2, **run),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """One compilation cache for all runs of this file."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("jax-cache")))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return pipeline.run(shrunk(out)), out


def weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return load_bundle(folder / "student").weights


def lines(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_figures_and_a_student(finished):
    result, _ = finished
    report = json.loads((result.folder / "report.json").read_text())
    assert report["split"] == "dev"
    assert report["test_readings"] == 0
    assert result.test is None
    assert set(result.dev) == {"teacher", "student"}
    assert len(result.dev["student"].languages) == 3
    assert (result.folder / "report.md").read_text().startswith("# quickstart")
    names = [record["stage_name"] for record in lines(result.folder)]
    assert list(dict.fromkeys(names)) == [stage.name for stage in shrunk(result.folder).plan()]
    compiled = report["compilations"]["programs"]
    steps = {f"train step {loss}" for loss in ("repr", "logit", "ce")}
    assert {*steps, "held-out loss repr", "cache pass", "predict"} <= set(compiled)
    assert all(each["compiled"] + each["found"] for each in compiled.values())
    assert sum(each["seconds"] for each in compiled.values()) == pytest.approx(
        report["compilations"]["seconds"]
    )
    assert "| train step logit |" in (result.folder / "report.md").read_text()


def test_a_command_ends_with_what_it_has_compiled(finished, capsys):
    result, out = finished
    jax.clear_caches()
    cli._carry_out(shrunk(out), evaluate_test=False)
    said = capsys.readouterr().out
    report = json.loads((result.folder / "report.json").read_text())
    assert report["compilations"]["programs"]
    assert compilations.table(report) in said


def test_a_second_run_finds_everything(finished):
    result, out = finished
    before = {path: path.stat().st_mtime_ns for path in (result.folder / "student").iterdir()}
    again = pipeline.run(shrunk(out))
    assert again.folder == result.folder
    assert {p: p.stat().st_mtime_ns for p in (result.folder / "student").iterdir()} == before
    assert again.dev == result.dev
    assert again.report["seconds"]["student"] == result.report["seconds"]["student"]
    assert again.report["compilations"]["misses"] == 0


def test_same_seed_same_student_wherever_the_data_lies(finished, tmp_path):
    result, _ = finished
    other = pipeline.run(shrunk(tmp_path, placement="resident"))
    for path, leaf in weights(result.folder).items():
        np.testing.assert_array_equal(leaf, weights(other.folder)[path], err_msg=path)


def test_the_test_set_is_read_only_when_asked_for(finished, monkeypatch):
    result, out = finished
    opened = []
    real = corpus_module.load_test
    monkeypatch.setattr(
        "xdistil_jax.evaluation.load_test", lambda *a, **k: opened.append(a) or real(*a, **k)
    )
    pipeline.run(shrunk(out))
    assert not opened
    tested = pipeline.run_again(result.folder, evaluate_test=True)
    assert len(opened) == 1
    assert tested.report["test_readings"] == 1
    assert tested.report["split"] == "test"
    again = pipeline.run(shrunk(out), evaluate_test=True)
    assert again.test == tested.test
    assert again.report["test_readings"] == 1, "figures that are there are not made twice"
    assert pipeline.run(shrunk(out)).test is None


def test_strategies_share_the_teacher_and_its_cache(finished):
    result, out = finished
    messages = []
    other = pipeline.run(shrunk(out, "D1"), say=messages.append)
    assert other.folder != result.folder
    assert not [m for m in messages if "building" in m or "fine-tuning" in m]
    assert len(list((out / "cache").glob("[!.]*"))) == 1


def coded(out: pathlib.Path, codec: str, strategy: str = "D4.1", **student: str) -> Experiment:
    whole = shrunk(out, strategy)
    return dataclasses.replace(
        whole,
        teacher=dataclasses.replace(whole.teacher, codec=codec),
        student=dataclasses.replace(whole.student, **student),
    )


@pytest.mark.slow
@pytest.mark.parametrize("imitate", ["states", "coordinates"])
def test_codecs_share_the_teacher_and_make_students_of_their_own(finished, imitate):
    _, out = finished
    messages: list[str] = []
    experiment = coded(out, "pca-0.9", imitate=imitate, projection="linear")
    found = pipeline.run(experiment, say=messages.append)
    assert not [m for m in messages if "fine-tuning" in m]
    assert len(list((out / "quickstart").glob("teacher-*"))) == 1
    [cache] = [c for c in list_caches(out / "cache") if c.settings["codec"] == "pca-0.9"]
    kept = np.load(next((out / "cache" / cache.id).glob("basis/directions-*.npy"))).shape[1]
    assert 1 < kept < 16
    width = kept if imitate == "coordinates" else 16
    assert weights(found.folder)["projection/kernel"].shape[1] == width
    assert load_bundle(found.folder / "student").sizes["teacher_width"] == width
    assert Tagger.load(found.folder)(["Anna wohnt in Köln ."])
    again = pipeline.run_again(found.folder)
    assert again.folder == found.folder
    assert again.dev == found.dev
    other = coded(out, "pca-0.8", imitate=imitate, projection="linear")
    with pytest.raises(ValueError, match="can't be found again"):
        pipeline.run(other, only=found.folder)


@pytest.mark.parametrize(
    ("codec", "imitate", "message"),
    [
        ("int4", "states", "codec 'int4' is unknown: choose from bf16, int8"),
        ("int8", "coordinates", "student.imitate is coordinates, .* such as pca-256"),
    ],
)
def test_codecs_that_do_not_fit_are_refused_at_once(tmp_path, codec, imitate, message):
    with pytest.raises(ValueError, match=message):
        pipeline.run(coded(tmp_path, codec, imitate=imitate))
    assert not list(tmp_path.glob("*/teacher-*"))


@pytest.mark.slow
def test_a_factored_embedding_is_deployed_as_one_table(finished):
    result, out = finished
    whole = shrunk(out, "logit-ce")
    student = dataclasses.replace(whole.student, embedding="projected")
    other = pipeline.run(dataclasses.replace(whole, student=student))
    marks = (other.folder / "plan.txt").read_text().splitlines()
    assert "x embed/projection" in marks
    assert "x source/table" not in marks
    sizes = {path: leaf.shape for path, leaf in weights(result.folder).items()}
    assert {path: leaf.shape for path, leaf in weights(other.folder).items()} == sizes


def test_run_again_refuses_what_has_changed(finished, tmp_path):
    result, _ = finished
    config = json.loads((result.folder / "config.json").read_text())
    config["student"]["embed"] = 9
    folder = tmp_path / "quickstart" / result.folder.name
    folder.mkdir(parents=True)
    (folder / "student").mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="settings have changed"):
        pipeline.run_again(folder)


class StopAfter:
    """Raises the flag at the n-th call."""

    def __init__(self, calls: int, flag: StopFlag) -> None:
        self.left, self.flag = calls, flag

    def write(self, record) -> None:
        pass

    def progress(self, record) -> None:
        self.left -= 1
        self.flag.raised = self.left == 0 or self.flag.raised

    def close(self) -> None:
        pass


@pytest.mark.parametrize("calls", [2, 11])
def test_an_interrupted_run_goes_on_to_the_same_student(finished, tmp_path, calls):
    result, _ = finished
    flag = StopFlag()
    with pytest.raises(InterruptedRunError, match=r"stage \d/\d, step .* saved; repeat"):
        pipeline.run(shrunk(tmp_path), stop=flag, progress=StopAfter(calls, flag))
    resumed = pipeline.run(shrunk(tmp_path))
    for path, leaf in weights(result.folder).items():
        np.testing.assert_array_equal(leaf, weights(resumed.folder)[path], err_msg=path)

    assert lines(resumed.folder) == lines(result.folder)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [4, 13])
def test_a_killed_run_goes_on_to_the_same_student(finished, tmp_path, calls):
    result, _ = finished
    run_and_kill(tmp_path, "D4.2", calls)
    resumed = pipeline.run(shrunk(tmp_path))
    for path, leaf in weights(result.folder).items():
        np.testing.assert_array_equal(leaf, weights(resumed.folder)[path], err_msg=path)


@pytest.mark.slow
def test_a_full_disk_ends_a_command_in_a_sentence(small_disk, tmp_path):
    out, _ = small_disk
    if not os.path.ismount(out):
        pytest.skip("no file of this run is large by itself, and only root may mount a small disk")
    root = str(pathlib.Path(__file__).parents[1])
    code = f"""
        import pathlib
        from tests.test_pipeline import shrunk

        experiment = shrunk(pathlib.Path({str(out)!r}))
    """
    file = tmp_path / "small.py"
    file.write_text(textwrap.dedent(code))
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir, "PYTHONPATH": root}
    full = subprocess.run(
        [sys.executable, "-m", "xdistil_jax", "run", str(file)],
        capture_output=True, text=True, env={**os.environ, **cache}, check=False,
    )  # fmt: skip
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    told = re.escape(f"xdistil run: {out}") + r"\S*: the disk is full\. .* repeat the command"
    assert re.match(told, full.stderr.splitlines()[-1]), full.stderr


def test_run_prints_nothing_and_writes_only_below_out(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    inside = tmp_path / "elsewhere"
    experiment = shrunk(inside, "D0-S")
    pipeline.run(experiment)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert os.listdir(tmp_path) == ["elsewhere"]


def test_a_missing_layer_is_named(finished):
    _, out = finished
    experiment = shrunk(out)
    teacher = dataclasses.replace(experiment.teacher, layer=3)
    with pytest.raises(ValueError, match=r"teacher.layer is 3; the teacher has layers 1 to 1"):
        pipeline.run(dataclasses.replace(experiment, teacher=teacher))


def test_an_empty_experiment_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="train"):
        pipeline.run(Experiment(run=RunConfig(out=str(tmp_path))))
