"""Writers lose nothing, repeat nothing on resume, and are quiet off the terminal."""

import io
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from xdistil_jax.files import DiskFullError
from xdistil_jax.report.writers import JsonLines, Progress, TensorBoard, Writers

RECORD = {
    "stage": 0,
    "stage_name": "repr",
    "step": 5,
    "global_step": 15,
    "train/repr": 0.25,
    "dev/f1": 0.5,
}


def _write(path, numbers, keep=None):
    writer = JsonLines(path, keep=keep)
    for number in numbers:
        writer.write({"step": number})
    writer.close()
    return writer.lines


def _steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_json_lines_are_appended_and_cut_back(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    assert _write(path, range(5)) == 5
    assert _write(path, [5]) == 6
    assert _write(path, [10, 11], keep=2) == 4
    assert _steps(path) == [0, 1, 10, 11]
    assert _write(path, [], keep=0) == 0
    assert path.read_text() == ""
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("keep", [None, 2])
def test_a_torn_last_line_is_dropped(tmp_path, keep):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"ste')
    assert _write(path, [2], keep=keep) == 3
    assert _steps(path) == [0, 1, 2]


def test_lost_lines_are_complained_about(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(path, [0])
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: expected at least 3 .* found 1"):
        assert _write(path, [], keep=3) == 1


def test_each_line_is_on_disk_at_once_and_is_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path)
    values = {"a": np.float32(0.5), "b": jnp.int32(3), "c": float("nan"), "d": {"é": [1, np.inf]}}
    writer.write(values)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "a": 0.5,
        "b": 3,
        "c": None,
        "d": {"é": [1, None]},
    }
    writer.close()
    writer.close()


def _events(folder):
    found = []
    for path in sorted(folder.iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (size,) = struct.unpack_from("<Q", data, position)
            found.append(Event.FromString(data[position + 12 : position + 12 + size]))
            position += size + 16
    return found


def test_tensorboard_takes_numbers_by_global_step(tmp_path):
    writer = TensorBoard(tmp_path)
    writer.write(RECORD | {"dev": {"de": jnp.float32(0.75)}, "watched": None})
    writer.close()
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in _events(tmp_path)
        for value in event.summary.value
    }
    assert scalars == {("train/repr", 15): 0.25, ("dev/f1", 15): 0.5, ("dev/de", 15): 0.75}


def test_tensorboard_hides_what_a_resumed_run_repeats(tmp_path):
    writer = TensorBoard(tmp_path, purge_step=16)
    writer.write(RECORD)
    writer.close()
    starts = [event.step for event in _events(tmp_path) if event.session_log.status]
    assert starts == [16]
    assert SessionLog.START in [event.session_log.status for event in _events(tmp_path)]


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _play(stream):
    bar = Progress(stream)
    call = {"stage": 0, "stages": 2, "stage_name": "repr", "steps": 20, "tokens_per_s": 12345.6}
    bar.progress(call | {"step": 8, "loss": 0.12345})
    bar.write(RECORD)
    bar.progress(call | {"step": 20, "loss": 0.5})
    bar.progress(call | {"step": 4, "stage": 1, "stage_name": "logit"})
    bar.close()
    bar.close()
    return stream.getvalue()


def test_progress_shows_stage_step_loss_f1_and_speed():
    text = _play(_Terminal())
    for part in ("1/2 repr", "20/20", "loss=0.5", "dev F1=50.0", "tokens/s=12,346", "2/2 logit"):
        assert part in text


def test_progress_is_silent_off_the_terminal(capfd):
    assert _play(io.StringIO()) == ""
    assert capfd.readouterr() == ("", "")


class _Log:
    def __init__(self, *, broken=False):
        self.seen, self.broken = [], broken

    def write(self, record):
        self.seen.append(("write", record["step"]))

    def progress(self, record):
        self.seen.append(("progress", record["step"]))

    def close(self):
        self.seen.append("close")
        if self.broken:
            raise OSError("disk full")


def test_writers_reach_each_and_close_all_even_if_one_fails():
    logs = (_Log(), _Log(broken=True), _Log())
    writers = Writers(logs)
    writers.write({"step": 1})
    writers.progress({"step": 2})
    with pytest.raises(OSError, match="disk full"):
        writers.close()
    for log in logs:
        assert log.seen == [("write", 1), ("progress", 2), "close"]


def test_a_full_disk_is_named_and_no_whole_line_is_lost(small_disk):
    folder, make_room = small_disk
    path = folder / "metrics.jsonl"
    writer = JsonLines(path)
    with pytest.raises(DiskFullError, match=f"{folder}: the disk is full"):  # noqa: PT012
        for number in range(40):
            writer.write({"step": number, "text": "x" * 50_000})
    make_room()
    assert _write(path, [99], keep=10) == 11
    assert _steps(path) == [*range(10), 99]
