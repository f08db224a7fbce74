"""Checkpoints: whole or refused, and a run that was killed at any moment is the same run."""

import contextlib
import gc
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.distill.toys import STAGES, Records, equal, make_params, make_training
from xdistil_jax import trees
from xdistil_jax.distill.checkpoint import CheckpointError, Checkpoints, Saved
from xdistil_jax.distill.loop import InterruptedRunError, StopFlag, run_plan
from xdistil_jax.distill.rates import hparams
from xdistil_jax.distill.state import start_state
from xdistil_jax.files import DiskFullError

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collect():
    """Orbax leaves coroutines behind when a read fails: let them go where that may be heard."""
    yield
    gc.collect()


# Inside of saves, while the run waits for them and while it goes on; before the first; between
# them; when all is done but the end. See crashes.py for what the names say.
DEATHS = [
    ("touch-60", "save-4-150"),
    pytest.param(
        (
            *("touch-3", "touch-20", "touch-101", "touch-147", "record-1", "record-8", "record-10"),
            *("save-1-0", "save-3-40", "save-5-80", "save-7-120", "save-9-200", "save-12-20"),
        ),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("deaths", DEATHS, ids=["few", "many"])
def test_kill_9_at_any_moment(tmp_path, deaths):
    program = [sys.executable, "-m", "tests.distill.crashes", str(tmp_path), *deaths]
    root = Path(__file__).parents[2]
    done = subprocess.run(program, capture_output=True, text=True, cwd=root)
    told = [line.split() for line in done.stdout.splitlines()]
    assert [(name, died, end) for name, died, _, end in told] == [
        ("whole", "0", "0"), *((name, "-9", "0") for name in deaths)
    ], done.stderr  # fmt: skip
    assert any(int(torn) for _, _, torn, _ in told), "no save was torn"
    expected = np.load(tmp_path / "whole" / "params.npz")
    records = (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert len(records.splitlines()) >= 10
    last_two = names(tmp_path / "whole" / "checkpoints")
    assert len(last_two) == 2
    for name in deaths:
        assert names(tmp_path / name / "checkpoints") == last_two, name
        found = np.load(tmp_path / name / "params.npz")
        assert set(found) == set(expected)
        for path in expected:
            assert found[path].tobytes() == expected[path].tobytes(), (name, path)
        assert (tmp_path / name / "metrics.jsonl").read_text() == records, name


# --- what is written comes back --------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def keep(folder, saved):
    """Save in ``folder``, as a process that then ends."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(saved)
    checkpoints.close()


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
    keep(tmp_path, saved)
    back = Checkpoints(tmp_path).load(state_of(stage))
    assert equal(back.state, saved.state)
    assert equal(back.best, saved.best)
    assert back.stage == 2
    assert saved.host.items() <= back.host.items()
    assert Checkpoints(tmp_path).peek() == back.host


def test_what_a_death_left_beyond_the_last_two_goes(tmp_path):
    # Death came once the third was whole, before the first was gone, and no save is to come.
    checkpoints = Checkpoints(tmp_path, keep=3)
    for _ in range(3):
        checkpoints.save(saved_of(STAGES[0]))
    checkpoints.close()
    assert names(tmp_path) == ["1", "2", "3"]
    again = Checkpoints(tmp_path, keep=2)
    assert names(tmp_path) == ["2", "3"]
    assert again.load(state_of(STAGES[0])).stage == 2
    again.close()


def test_without_a_folder_nothing_is_saved():
    checkpoints = Checkpoints(None, every=0)
    checkpoints.save(saved_of(STAGES[0]))
    assert checkpoints.peek() is None
    assert not checkpoints.due()
    checkpoints.close()


@pytest.mark.parametrize(("number", "left"), [(1, ["5"]), (2, ["4", "5"]), (3, ["3", "4", "5"])])
def test_the_last_are_kept_and_the_latest_counts(tmp_path, number, left):
    checkpoints = Checkpoints(tmp_path, every=0, keep=number)
    assert checkpoints.peek() is None
    for step in range(3):
        checkpoints.save(saved_of(STAGES[0])._replace(host={"step": step}))
        assert checkpoints.peek()["step"] == step
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, every=0, keep=number)
    for step in range(3, 5):
        # One is begun while the one before is being written.
        checkpoints.save(saved_of(STAGES[0])._replace(host={"step": step}))
    checkpoints.wait()
    assert names(tmp_path) == left
    assert checkpoints.peek()["step"] == 4
    assert checkpoints.due()
    checkpoints.close()
    assert not Checkpoints(tmp_path, every=1e6).due()


def test_a_run_keeps_at_least_one(tmp_path):
    with pytest.raises(ValueError, match=r"run\.keep_checkpoints is 0"):
        Checkpoints(tmp_path, keep=0)


@pytest.fixture
def background(monkeypatch):
    """An event for which all that Orbax does in the background waits."""
    begin, run = threading.Event(), threading.Thread.run

    def wait_and_run(thread):
        # Pools serve the caller, who waits for them; timers are ours.
        if not thread.name.startswith(("asyncio", "ThreadPool", "Thread-")):
            begin.wait(60)
        run(thread)

    monkeypatch.setattr(threading.Thread, "run", wait_and_run)
    yield begin
    begin.set()


def test_what_is_saved_is_not_touched_by_the_next_step(tmp_path, background):
    saved = saved_of(STAGES[0])
    host = {"step": 5, "sums": [[1.0, 2.0]]}
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2 + 1, tree), donate_argnums=0)
    # Not looked at by NumPy here: that alone would keep the step from writing into its buffers.
    state = saved.state._replace(trainable=step(jax.tree.map(jnp.array, saved.state.trainable)))
    expected = jax.tree.map(lambda leaf: np.asarray(leaf) * 2 + 1, saved.state.trainable)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Saved(0, state, state.trainable, host))
    host["sums"][0][0] += 1.0
    jax.block_until_ready(step(step(state.trainable)))
    assert checkpoints._manager.is_saving_in_progress()
    assert names(tmp_path) == ["1.orbax-checkpoint-tmp"]
    background.set()
    back = checkpoints.load(state_of(STAGES[0]))
    assert equal(back.state.trainable, expected)
    assert equal(back.best, expected)
    assert back.host["sums"] == [[1.0, 2.0]]
    checkpoints.close()


def test_a_save_that_fails_is_heard_of(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    shutil.rmtree(folder)
    folder.write_text("no folder")
    complaint = f"{folder}: a checkpoint could not be written: .* repeat the command"
    with pytest.raises(CheckpointError, match=complaint):  # noqa: PT012
        checkpoints.save(saved_of(STAGES[0]))
        checkpoints.wait()
    folder.unlink()
    checkpoints.save(saved_of(STAGES[0]))
    checkpoints.close()
    assert names(folder) == ["2"]


def test_a_save_that_fails_in_the_background_is_heard_of(small_disk):
    folder, make_room = small_disk
    keep(folder, saved_of(STAGES[0]))
    checkpoints, large = Checkpoints(folder), saved_of(STAGES[0])
    noise = np.random.default_rng(0).standard_normal(1_000_000, np.float32)
    large = large._replace(best={**large.best, "embed": {"table": noise}})
    checkpoints.save(large)
    with pytest.raises(DiskFullError, match=f"{folder}: the disk is full.* repeat the command"):
        checkpoints.save(saved_of(STAGES[0]))
    checkpoints.close()
    checkpoints = Checkpoints(folder)
    assert checkpoints.peek()["step"] == 5
    make_room()
    checkpoints.save(large)
    checkpoints.close()
    assert names(folder) == ["1", "2"]


@pytest.mark.parametrize("stop", [False, True], ids=["the end", "a stop"])
def test_a_run_ends_when_its_last_save_is_on_the_disk(tmp_path, background, stop):
    flag = StopFlag()

    class Slow(Checkpoints):
        def save(self, saved):
            super().save(saved)
            threading.Timer(0.5, background.set).start()

    def after(count):
        flag.raised = stop

    checkpoints = Slow(tmp_path, every=1e6)
    training = make_training(checkpoints, Records(after=after), flag)
    ending = pytest.raises(InterruptedRunError) if stop else contextlib.nullcontext()
    with ending:
        run_plan(training, STAGES[:1], make_params())
    assert names(tmp_path) == ["1"]
    checkpoints.close()


def test_a_save_that_was_torn_is_passed_over(tmp_path):
    keep(tmp_path, saved_of(STAGES[0]))
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
    keep(tmp_path, saved)
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
    keep(tmp_path, saved_of(STAGES[0], seed=1))
    keep(tmp_path, saved_of(STAGES[0], seed=2))
    shutil.rmtree(tmp_path / "2" / "arrays")
    shutil.copytree(tmp_path / "1" / "arrays", tmp_path / "2" / "arrays")
    assert "/2 is damaged or of another run: its content is not" in load_or_refuse(tmp_path)


def test_another_position_is_refused(tmp_path):
    keep(tmp_path, saved_of(STAGES[0]))
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
        with pytest.raises(CheckpointError, match=rf"{latest} is damaged .* Delete that folder"):
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
