"""Atomic files and folders: whole or not at all, the first builder wins, nothing is left behind."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from xdistil_jax import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["grün\n", b"\x00\xff", "", b""])
def test_write_atomic_writes_what_it_was_given(tmp_path, content):
    path = tmp_path / "a"
    path.write_text("old")
    files.write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == ["a"]


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_folder_appears_only_when_the_block_has_ended(tmp_path):
    final = tmp_path / "parent" / "store"
    with files.atomic_folder(final) as folder:
        assert folder.parent == final.parent
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not final.exists()
    assert (final / "sub" / "a").read_text() == "1"
    assert names(final.parent) == ["store"]


def test_failed_block_leaves_nothing(tmp_path):
    def build():
        with files.atomic_folder(tmp_path / "store") as folder:
            (folder / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert names(tmp_path) == []


def test_first_builder_wins(tmp_path):
    final = tmp_path / "store"
    with files.atomic_folder(final) as slow:
        (slow / "a").write_text("slow")
        with files.atomic_folder(final) as fast:
            (fast / "a").write_text("fast")
    assert (final / "a").read_text() == "fast"
    assert names(tmp_path) == ["store"]


def test_replace_folder_tells_who_won(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    assert files.replace_folder(tmp_path / "one", tmp_path / "final")
    assert not files.replace_folder(tmp_path / "two", tmp_path / "final")
    assert (tmp_path / "final" / "a").read_text() == "one"
    assert names(tmp_path) == ["final"]


def test_checksum_sees_one_flipped_bit(tmp_path):
    path = tmp_path / "a"
    content = bytearray(b"x" * 3_000_000)
    path.write_bytes(content)
    before = files.checksum(path)
    assert before == hashlib.blake2b(content, digest_size=16).hexdigest()
    content[1_500_000] ^= 1
    path.write_bytes(content)
    assert files.checksum(path) != before


def test_a_full_disk_is_named_whoever_meets_it(small_disk):
    folder, make_room = small_disk
    complaint = f"{folder}: the disk is full. Nothing that was finished is lost: make room"
    large = np.zeros(300_000)
    with pytest.raises(files.DiskFullError, match=complaint):
        files.write_atomic(folder / "a", large.tobytes())
    # NumPy says only that it wrote less than it was to; the inner folder is hidden and goes.
    with (
        pytest.raises(files.DiskFullError, match=complaint),
        files.atomic_folder(folder / "b") as inner,
    ):
        np.save(inner / "large.npy", large)
    with (
        pytest.raises(files.DiskFullError, match=complaint),
        files.atomic_folder(folder / "b") as inner,
    ):
        files.write_atomic(inner / "large", large.tobytes())
    assert names(folder) == []
    make_room()
    files.write_atomic(folder / "a", large.tobytes())
    assert (folder / "a").stat().st_size == large.nbytes


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), files.naming_full_disk(tmp_path):
        (tmp_path / "nowhere").read_text()
    with pytest.raises(ValueError, match="else"), files.naming_full_disk(tmp_path):
        raise ValueError("something else")


def test_a_folder_is_tried_before_it_is_needed(tmp_path):
    files.require_writable(tmp_path / "new" / "runs", "run.out")
    assert names(tmp_path / "new" / "runs") == []
    (tmp_path / "file").write_text("")
    unwritable = [tmp_path / "file", tmp_path / "file" / "runs", Path("/proc/runs")]
    if os.getuid():
        (tmp_path / "theirs").mkdir(mode=0o500)
        unwritable.append(tmp_path / "theirs")
    for folder in unwritable:
        complaint = f"^{folder}: expected a folder in which you may write, .* another with run.out"
        with pytest.raises(OSError, match=complaint):
            files.require_writable(folder, "run.out")
