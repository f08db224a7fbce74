"""Atomic files and folders: whole or not at all, the first builder wins, nothing is left behind."""

import hashlib
import os

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
