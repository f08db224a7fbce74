"""Files and folders that appear whole or not at all, and checksums.

Whatever is written here below the mirror of a bucket is uploaded at once (see ``storage``).
"""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xdistil_jax import storage

if TYPE_CHECKING:
    import numpy as np

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """A folder whose disk, or whose user's share of it, is full."""


@contextmanager
def naming_full_disk(folder: str | Path) -> Iterator[None]:
    """Writes below ``folder``: where there is no room for them, say so, and what to do.

    Raises:
        DiskFullError: naming the folder.
    """
    try:
        yield
    except Exception as error:
        if not _is_for_room(error):
            raise
        raise DiskFullError(
            f"{folder}: the disk is full. Nothing that was finished is lost: make room and repeat "
            "the command to go on"
        ) from error


def _is_for_room(error: Exception) -> bool:
    if isinstance(error, DiskFullError):
        # Of a file in a folder that isn't there yet: the folder's name says more.
        return True
    number = getattr(error, "errno", None)
    if number is not None:
        return number in _NO_ROOM
    # TensorStore and NumPy have no number; NumPy, only that it wrote less than it was to.
    words = (*map(os.strerror, _NO_ROOM), *(["requested and"] * isinstance(error, OSError)))
    return any(each in str(error) for each in words)


def require_writable(folder: str | Path, name: str) -> None:
    """Make ``folder``, and try to write there, before anything is computed for it.

    Raises:
        OSError: naming the folder, and ``name``, the field that says where it is.
    """
    folder = Path(folder)
    try:
        with naming_full_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe = _temporary(folder / "probe")
            probe.touch()
            probe.unlink()
    except DiskFullError:
        raise
    except OSError as error:
        raise type(error)(
            f"{folder}: expected a folder in which you may write, found: {error.strerror}. Choose "
            f"another with {name}"
        ) from error


def _temporary(final: Path) -> Path:
    """A new hidden name beside ``final``: on the same file system, so that a rename is atomic."""
    return final.with_name(f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _sync(path: Path) -> None:
    """Force a file, or the list of names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: str | Path, *parts: bytes | memoryview | str) -> None:
    """Write a file (text as UTF-8): a reader sees the old content or the new, never a part."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        with naming_full_disk(path.parent), temporary.open("xb") as file:
            for part in parts:
                file.write(part.encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)
    storage.push(path)


def replace_folder(temporary: str | Path, final: str | Path) -> bool:
    """Give a finished folder its final name; False if another builder was first.

    The first wins: the loser's copy is dropped. Both must be on one file system.
    """
    temporary, final = Path(temporary), Path(final)
    for path in sorted(temporary.rglob("*")):
        _sync(path)
    _sync(temporary)
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(temporary)
        return False
    _sync(final.parent)
    storage.push(final)
    return True


@contextmanager
def atomic_folder(final: str | Path) -> Iterator[Path]:
    """Fill the folder that is handed out; it gets the name ``final`` when the block ends well.

    It is dropped if the block raises, or if another builder has finished ``final`` before.
    """
    final = Path(final)
    with naming_full_disk(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(final)
        temporary.mkdir()
    try:
        with naming_full_disk(final.parent):
            yield temporary
            replace_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def checksum(path: str | Path) -> str:
    """blake2b of a file's bytes, 32 hex digits; read in pieces, so a large file costs no memory."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def digest(content: "bytes | memoryview | np.ndarray") -> str:
    """``checksum`` of a file with this content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
