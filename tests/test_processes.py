"""Several real processes, with collectives: one run, whatever happens to one of them."""

import json
import pathlib
from functools import partial

import numpy as np
import pytest

from tests.distill.across import first_gradient
from tests.distill.toys import STAGES, Records, make_params, make_training
from tests.started import launch
from tests.teacher.across import TEXT
from tests.teacher.toys import build_toy, contents, make_store
from tests.test_pod import COMPILED_SOON, write_text
from xdistil_jax import trees
from xdistil_jax.distill.loop import run_plan

DEVICES = 2


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Run a program in several processes of two devices each; gives (code, what was said)."""
    compiled = tmp_path_factory.mktemp("compiled")
    return partial(launch, compiled=compiled)


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as found:
        return dict(found)


@pytest.fixture(scope="module")
def alone():
    """The same run in this process, on one device."""
    writer = Records()
    result = run_plan(make_training(writer=writer), STAGES, make_params())
    return dict(trees.leaves(result.params)), writer.written, first_gradient(1)


@pytest.fixture(scope="module")
def whole(launched, tmp_path_factory):
    """Uninterrupted runs, by the number of processes."""
    folders = {}

    def run(processes: int) -> pathlib.Path:
        if processes not in folders:
            folder = tmp_path_factory.mktemp("whole") / str(processes)
            code, said = launched("tests.distill.across", processes, folder)
            assert code == 0, said
            folders[processes] = folder
        return folders[processes]

    return run


def close(folder: pathlib.Path, alone) -> None:
    params, records, _ = alone
    theirs = json.loads((folder / "records.json").read_text())
    assert [each["step"] for each in theirs] == [each["step"] for each in records]
    for mine, its in zip(records, theirs, strict=True):
        for name in mine:
            if "/" in name:
                assert its[name] == pytest.approx(mine[name], abs=2e-3 if "f1" in name else 1e-4)
    for path, leaf in arrays(folder / "params.npz").items():
        np.testing.assert_allclose(leaf, np.asarray(params[path]), atol=1e-4, err_msg=path)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_plan_in_several_processes_is_the_plan_in_one(whole, alone, processes):
    folder = whole(processes)
    gradient = arrays(folder / "gradient.npz")
    for path, leaf in alone[2].items():
        np.testing.assert_allclose(gradient[path], leaf, rtol=1e-5, atol=1e-7, err_msg=path)
    close(folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize("dying", [0, 1])
def test_a_killed_process_is_named_and_the_same_command_goes_on(launched, whole, tmp_path, dying):
    folder = tmp_path / "run"
    code, said = launched("tests.distill.across", 2, folder, dying, 9)
    assert code == 128 + 9
    assert f"process {dying} of 0 to 1 was killed by SIGKILL" in said
    assert "repeat the command to go on" in said
    code, said = launched("tests.distill.across", 2, folder)
    assert code == 0, said
    wanted = arrays(whole(2) / "params.npz")
    for path, leaf in arrays(folder / "params.npz").items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)


@pytest.mark.slow
def test_sigterm_to_one_saves_all_and_other_topologies_go_on(launched, alone, tmp_path):
    folder = tmp_path / "run"
    for processes, call in ((4, -6), (2, -6)):
        code, said = launched("tests.distill.across", processes, folder, processes - 1, call)
        assert code == 7, said
    code, said = launched("tests.distill.across", 1, folder)
    assert code == 0, said
    for path, leaf in arrays(folder / "params.npz").items():
        np.testing.assert_allclose(leaf, np.asarray(alone[0][path]), atol=1e-4, err_msg=path)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """The bytes of a cache that one process has built on as many devices."""
    folder = tmp_path_factory.mktemp("cached")
    build_toy(folder, make_store(TEXT), devices=DEVICES, shard_bytes=6_000)
    return contents(folder)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_cache_of_several_writers_is_that_of_one(launched, cached, tmp_path, processes):
    code, said = launched("tests.teacher.across", processes, tmp_path / "cache")
    assert code == 0, said
    assert contents(tmp_path / "cache") == cached


@pytest.mark.slow
@pytest.mark.parametrize("event", [12, 30])
def test_a_writer_that_is_killed_leaves_nothing_behind(launched, cached, tmp_path, event):
    code, said = launched("tests.teacher.across", 2, tmp_path / "cache", 1, event)
    assert code == 128 + 9, said
    assert "process 1 of 0 to 1 was killed by SIGKILL" in said
    code, said = launched("tests.teacher.across", 2, tmp_path / "cache")
    assert code == 0, said
    assert contents(tmp_path / "cache") == cached


@pytest.mark.slow
def test_a_process_that_comes_late_is_waited_for(launched):
    code, said = launched("tests.late", 2, 35)
    assert code == 0, said


@pytest.fixture(scope="module")
def teacher(launched, tmp_path_factory):
    """(figures, records, what the cache says) of a teacher in so many processes, split so."""
    root = tmp_path_factory.mktemp("teacher")
    write_text(root / "text")

    def run(processes: int, ways: int) -> tuple[dict, list[dict], dict[str, np.ndarray]]:
        folder = root / f"split-{ways}"
        code, said = launched(
            "tests.split", processes, root / "text", folder, ways, flags=COMPILED_SOON
        )
        assert code == 0, said
        [metrics] = folder.rglob("metrics.jsonl")
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        figures = json.loads((folder / "teacher.json").read_text())
        return figures, records, arrays(folder / "stream.npz")

    return run


@pytest.mark.slow
def test_a_teacher_split_over_the_devices_of_all_is_the_whole_one(teacher):
    figures, records, states = teacher(1, 0)
    assert figures["f1"] > 10
    # Each head in one process, and then the parts of each in two.
    for ways in (2, 4):
        its_figures, its_records, its_states = teacher(2, ways)
        assert its_figures["f1"] == pytest.approx(figures["f1"], abs=0.2)
        assert [each["step"] for each in its_records] == [each["step"] for each in records]
        assert its_records[-1]["train/ce"] == pytest.approx(records[-1]["train/ce"], rel=1e-4)
        for path, leaf in states.items():
            np.testing.assert_allclose(its_states[path], leaf, rtol=1e-2, atol=2e-2, err_msg=path)
