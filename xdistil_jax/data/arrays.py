"""A folder of arrays: written while they grow, checked by checksums, mapped into memory."""

import errno
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from xdistil_jax import files, storage

_MANIFEST = "manifest.json"


class StoreError(ValueError):
    """A store on disk is damaged; the message names the file."""


def digest(content: Any) -> str:
    """blake2b of a value as JSON: 32 hex digits."""
    canonical = json.dumps(content, sort_keys=True).encode()
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


class ArrayFolder:
    """Writes each array to ``NAME.npy``, part by part, and in the end a manifest of all."""

    def __init__(self, folder: Path, dtypes: Mapping[str, type]) -> None:
        self._folder = folder
        self._columns = {
            name: Column(folder / f"{name}.npy", dtype) for name, dtype in dtypes.items()
        }

    def append(self, name: str, values: np.ndarray) -> None:
        self._columns[name].append(values)

    def length(self, name: str) -> int:
        return self._columns[name].length

    def close(self, source: dict[str, Any], facts: dict[str, Any]) -> None:
        """Finish: ``source`` is what the arrays were made from, ``facts`` what else holds."""
        for column in self._columns.values():
            column.close()
        checksums = {name: files.checksum(self._folder / f"{name}.npy") for name in self._columns}
        content = {"source": source, "facts": facts, "checksums": checksums}
        manifest = {"content": content, "checksum": digest(content)}
        files.write_atomic(self._folder / _MANIFEST, json.dumps(manifest, indent=2))


def load_arrays(
    folder: Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    """Arrays (mapped, read-only), source and facts of a folder whose name is its source's digest.

    Raises:
        StoreError: naming the file that is damaged or missing.
    """
    manifest_file = folder / _MANIFEST
    try:
        manifest = json.loads(manifest_file.read_bytes())
        content = manifest["content"]
        whole = manifest["checksum"] == digest(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damage(manifest_file, str(error)) from error
    if not whole or digest(content["source"]) != folder.name:
        raise _damage(manifest_file, "its checksum, or the name of the folder, doesn't fit")
    arrays = {}
    for name, expected in content["checksums"].items():
        file = folder / f"{name}.npy"
        if not file.is_file():
            raise _damage(file, "it is missing")
        if files.checksum(file) != expected:
            raise _damage(file, "its checksum doesn't fit")
        arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
    return arrays, content["source"], content["facts"]


def gather(
    parts: Iterable[Mapping[str, np.ndarray]], dtypes: Mapping[str, type], folder: Path | None
) -> dict[str, np.ndarray]:
    """The arrays of all parts, end to end, mapped into memory, read-only.

    For what is as long as the text, but need not be found again: it takes disk, and no memory. The
    files have no name and go when the arrays go, even if the process is killed. They lie in
    ``folder`` (None: where the system has its temporary files).

    Raises:
        OSError: naming the folder, if the disk is full.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with _naming(folder), ExitStack() as stack:
        opened = {name: stack.enter_context(tempfile.TemporaryFile(dir=folder)) for name in dtypes}
        for part in parts:
            for name, file in opened.items():
                file.write(np.ascontiguousarray(part[name], dtypes[name]))
        return {name: _mapped(file, dtypes[name]) for name, file in opened.items()}


@contextmanager
def _naming(folder: Path | None) -> Iterator[None]:
    """Say of a file without a name where it was that the disk was full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename:
            raise
        place = folder or tempfile.gettempdir()
        complaint = f"{error.strerror}, while text was put aside; make room, or write elsewhere"
        raise OSError(error.errno, complaint, str(place)) from error


def _mapped(file: IO[bytes], dtype: type) -> np.ndarray:
    file.flush()
    if not file.tell():
        return np.empty(0, dtype)
    # A plain array: slicing np.memmap costs several times as much.
    return np.asarray(np.memmap(file, dtype, mode="r"))


def _damage(file: Path, reason: str) -> StoreError:
    return StoreError(
        f"{file} is damaged: {reason}. Delete {storage.places(file.parent)} to have it built again"
    )


class Column:
    """An ``.npy`` file that grows; its header is written again, with the length, at the end."""

    def __init__(self, path: Path, dtype: DTypeLike, rest: tuple[int, ...] = ()) -> None:
        self.length = 0
        self._dtype, self._rest = np.dtype(dtype).newbyteorder("<"), rest
        self._file: BinaryIO = path.open("xb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        """Add ``values`` [N, *rest]."""
        self._file.write(np.ascontiguousarray(values, self._dtype))
        self.length += len(values)

    def close(self) -> None:
        """Finish the file."""
        # NumPy pads headers so that the first axis can grow to any length in place.
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        shape = (self.length, *self._rest)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
