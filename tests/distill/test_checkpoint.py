"""Checkpoints: whole or refused, and a run that was killed at any moment is the same run."""

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.distill.toys import STAGES, Records, equal, make_params, make_training
from xdistil_jax import trees
from xdistil_jax.distill.checkpoint import CheckpointError, Checkpoints, Saved
from xdistil_jax.distill.loop import InterruptedRunError, StopFlag, run_plan
from xdistil_jax.distill.step import hparams, start_state

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collect():
    """Orbax leaves coroutines behind when a read fails: let them go where that may be heard."""
    yield
    gc.collect()


# Before the first save, in the middle of saves, between them, and when all is done but the end.
DEATHS = ("touch-3", "touch-101", "touch-147", "record-8", "record-10")


def test_kill_9_at_any_moment(tmp_path):
    program = [sys.executable, "-m", "tests.distill.crashes", str(tmp_path), *DEATHS]
    root = Path(__file__).parents[2]
    done = subprocess.run(program, capture_output=True, text=True, cwd=root)
    told = [line.split() for line in done.stdout.splitlines()]
    assert told == [["whole", "0", "0"], *([name, "-9", "0"] for name in DEATHS)], done.stderr
    expected = np.load(tmp_path / "whole" / "params.npz")
    records = (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert len(records.splitlines()) >= 10
    for name in DEATHS:
        found = np.load(tmp_path / name / "params.npz")
        assert set(found) == set(expected)
        for path in expected:
            assert found[path].tobytes() == expected[path].tobytes(), (name, path)
        assert (tmp_path / name / "metrics.jsonl").read_text() == records, name


# --- what is written comes back --------------------------------------------------------------


def state_of(stage, seed=0):
    params = make_params(seed)
    return start_state(params, stage.program, jax.random.key(seed), hparams(stage, 10))


def saved_of(stage, seed=1):
    state = jax.tree.map(
        lambda x: x + 1 if x.dtype == np.float32 else x, state_of(stage, seed)._replace(key=None)
    )
    state = state._replace(key=jax.random.key(7), step=state.step + 5)
    best = jax.tree.map(lambda leaf: -leaf, state.trainable)
    return Saved(2, state, best, {"step": 5, "stopping": [float("-inf"), -1, 0], "records": 3})


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_is_saved_comes_back(tmp_path, number):
    stage = STAGES[number]
    saved = saved_of(stage)
    Checkpoints(tmp_path).save(saved)
    back = Checkpoints(tmp_path).load(state_of(stage))
    assert equal(back.state, saved.state)
    assert equal(back.best, saved.best)
    assert back.stage == 2
    assert saved.host.items() <= back.host.items()
    assert Checkpoints(tmp_path).peek() == back.host


def test_without_a_folder_nothing_is_saved():
    checkpoints = Checkpoints(None, every=0)
    checkpoints.save(saved_of(STAGES[0]))
    assert checkpoints.peek() is None
    assert not checkpoints.due()
    checkpoints.close()


def test_the_last_two_are_kept_and_the_latest_counts(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=0)
    assert checkpoints.peek() is None
    for number in range(4):
        checkpoints.save(saved_of(STAGES[0])._replace(host={"step": number}))
        assert checkpoints.peek()["step"] == number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]
    assert checkpoints.due()
    assert not Checkpoints(tmp_path, every=1e6).due()


def test_a_save_that_was_torn_is_passed_over(tmp_path):
    Checkpoints(tmp_path).save(saved_of(STAGES[0]))
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    assert Checkpoints(tmp_path).load(state_of(STAGES[0])).host["step"] == 5


# --- damage ----------------------------------------------------------------------------------


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x11]) + content[middle + 1 :]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("spoil", [flip, lambda content: content[: len(content) // 2], None])
def test_damage_is_refused_or_does_no_harm(tmp_path, spoil):
    saved = saved_of(STAGES[0])
    Checkpoints(tmp_path).save(saved)
    good, refused = contents(tmp_path), []
    for path, content in good.items():
        path.unlink() if spoil is None else path.write_bytes(spoil(content))
        back = load_or_refuse(tmp_path)
        if isinstance(back, str):
            assert f"{tmp_path}/1 is damaged" in back
            refused.append(path.relative_to(tmp_path / "1"))
        else:
            assert back.stage == saved.stage
            assert equal(back[1:3], saved[1:3]), path
            assert saved.host.items() <= back.host.items(), path
        path.write_bytes(content)
    # Not every file below d/ is read.
    assert any(path.parent.name == "d" for path in refused)
    assert Path("host/metadata") in refused


def load_or_refuse(folder):
    """What is loaded, or the complaint."""
    try:
        checkpoints = Checkpoints(folder)
        host = checkpoints.peek()
        back = checkpoints.load(state_of(STAGES[0]))
    except CheckpointError as error:
        return str(error)
    assert host == back.host
    return back


def test_arrays_of_another_checkpoint_are_refused(tmp_path):
    Checkpoints(tmp_path).save(saved_of(STAGES[0], seed=1))
    Checkpoints(tmp_path).save(saved_of(STAGES[0], seed=2))
    shutil.rmtree(tmp_path / "2" / "arrays")
    shutil.copytree(tmp_path / "1" / "arrays", tmp_path / "2" / "arrays")
    assert "/2 is damaged or of another run: its content is not" in load_or_refuse(tmp_path)


def test_another_position_is_refused(tmp_path):
    Checkpoints(tmp_path).save(saved_of(STAGES[0]))
    path = tmp_path / "1" / "host" / "metadata"
    whole = path.read_text()
    for old, new in (('"step": 5', '"step": 7'), ('"records": 3', '"records": 2')):
        path.write_text(whole.replace(old, new))
        assert path.read_text() != whole
        assert "its position is not what was written" in load_or_refuse(tmp_path)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(folder of a run that was stopped in its second stage, result of the whole run)."""
    folder, stop = tmp_path_factory.mktemp("stopped"), StopFlag()

    def after(count):
        stop.raised = count == 9

    training = make_training(Checkpoints(folder, every=0), Records(after=after), stop)
    with pytest.raises(InterruptedRunError):
        run_plan(training, STAGES, make_params())
    return folder, run_plan(make_training(), STAGES, make_params())


def test_a_run_is_never_built_over_a_damaged_checkpoint(stopped, tmp_path):
    folder, whole = tmp_path / "copy", stopped[1]
    shutil.copytree(stopped[0], folder)
    latest = folder / max((path.name for path in folder.iterdir()), key=int)
    for path in (latest / "arrays").rglob("d/*"):
        path.write_bytes(flip(path.read_bytes()))
    before = contents(folder)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"{latest} is damaged .* Delete that folder"):
            run_plan(make_training(Checkpoints(folder)), STAGES, make_params())
        assert contents(folder) == before
    # As the message says.
    shutil.rmtree(latest)
    result = run_plan(make_training(Checkpoints(folder)), STAGES, make_params())
    assert equal(result.params, whole.params)


def test_a_checkpoint_of_another_student_is_refused(stopped, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(stopped[0], folder)
    params = make_params()
    params["head"]["bias"] = np.zeros(9, np.float32)
    with pytest.raises(CheckpointError, match="damaged or of another run"):
        run_plan(make_training(Checkpoints(folder)), STAGES, params)
    assert json.loads(json.dumps(Checkpoints(folder).peek()))["stage"] == 1
    assert [path for path, _ in trees.leaves(params)]
