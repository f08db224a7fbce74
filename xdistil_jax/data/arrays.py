"""A folder of arrays: written while they grow, checked by checksums, mapped into memory."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

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
            name: _Column(folder / f"{name}.npy", dtype) for name, dtype in dtypes.items()
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


def _damage(file: Path, reason: str) -> StoreError:
    return StoreError(
        f"{file} is damaged: {reason}. Delete {storage.places(file.parent)} to have it built again"
    )


class _Column:
    """An ``.npy`` file that grows; its header is written again, with the length, at the end."""

    def __init__(self, path: Path, dtype: type) -> None:
        self.length = 0
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._file: BinaryIO = path.open("xb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        self._file.write(values.astype(self._dtype).tobytes())
        self.length += len(values)

    def close(self) -> None:
        # NumPy pads headers so that the first axis can grow to any length in place.
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)
