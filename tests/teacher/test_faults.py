"""Faults of the machine while a cache is built: a full disk, no folder, kills, two at once."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.teacher.toys import SETTINGS, build_toy, contents, make_store, random_rows
from xdistil_jax.files import DiskFullError

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
SEED, TOUCHES = 20261121, 130


@pytest.mark.slow
def test_a_writer_killed_at_20_random_moments_leaves_the_same_bytes(tmp_path):
    events = sorted(random.Random(SEED).sample(range(TOUCHES), 20))
    print(f"seed {SEED}: touches {events}")  # noqa: T201 - shown by pytest when it fails
    command = [sys.executable, "-m", "tests.teacher.toys", tmp_path, tmp_path / "jit", "bf16"]
    done = subprocess.run(
        [*map(str, command), *map(str, events)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [(event, died, end) for event, died, _, end in told] == [(e, -9, 0) for e in events]
    # Before the first shard, in the middle, and near the end.
    assert len({shards for _, _, shards, _ in told}) >= 4
    whole = contents(tmp_path / "whole")
    for event in events:
        assert contents(tmp_path / str(event)) == whole, event


def test_a_full_disk_is_named_and_the_same_call_goes_on(tmp_path, small_disk):
    folder, make_room = small_disk
    # 1.8 MB in shards of 0.3, or in files of more than a MiB where the limit is on each of them.
    store = make_store(random_rows(1100))
    sizes = {"shard_bytes": 300_000 if os.path.ismount(folder) else 4_000_000, "token_budget": 1600}
    build_toy(tmp_path / "elsewhere", store, **sizes)
    with pytest.raises(DiskFullError) as caught:
        build_toy(folder, store, **sizes)
    place = folder / SETTINGS.id / "shards"
    assert str(caught.value) == (
        f"{place}: the disk is full. Nothing that was finished is lost: make room and repeat the "
        "command to go on"
    )
    finished = {path: path.stat().st_mtime_ns for path in place.rglob("*.npy")}
    assert not list(place.glob(".*"))
    assert bool(finished) == os.path.ismount(folder)
    make_room()
    build_toy(folder, store, **sizes)
    assert contents(folder / SETTINGS.id) == contents(tmp_path / "elsewhere" / SETTINGS.id)
    assert finished.items() <= {p: p.stat().st_mtime_ns for p in place.rglob("*.npy")}.items()


def test_a_folder_in_which_nobody_can_write(tmp_path):
    store = make_store(random_rows(5))
    (tmp_path / "file").write_text("no folder")
    for root in (tmp_path / "file" / "cache", Path("/proc/cache")):
        with pytest.raises(OSError, match=str(root)):
            build_toy(root, store)
    assert (tmp_path / "file").read_text() == "no folder"


@pytest.mark.slow
def test_of_two_processes_one_builds_and_one_waits(tmp_path):
    command = [sys.executable, "-m", "tests.teacher.across", str(tmp_path / "both")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("building 120 rows" in out for out, _ in said) == 1, said
    build_toy(tmp_path / "alone", make_store(random_rows(120)), shard_bytes=6_000)
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_damaged_shard_loses_nothing_else(tmp_path, harm):
    store = make_store(random_rows(60))
    build_toy(tmp_path, store)
    whole = contents(tmp_path)
    path = tmp_path / SETTINGS.id / "shards" / "000001" / "logits.npy"
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes(content[:middle] if harm == "cut" else flipped)
    with pytest.raises(RuntimeError, match=f"{path}.* repeat the command"):
        build_toy(tmp_path, store)
    others = {name: each for name, each in whole.items() if "/000001/" not in name}
    assert others.items() <= contents(tmp_path).items()
    shutil.rmtree(path.parent)
    rows = build_toy(tmp_path, store).stream(np.arange(60), 40)
    assert contents(tmp_path) == whole
    assert len(rows["logits"]) == 60
