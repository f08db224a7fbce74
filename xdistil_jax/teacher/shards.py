"""Sealed folders of arrays, and the ledger of which rows a teacher cache holds in which of them."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt
from numpy.typing import DTypeLike

from xdistil_jax import storage
from xdistil_jax.data.arrays import Column
from xdistil_jax.files import atomic_folder, checksum

ROW = np.dtype([("hash", "<u8", 2), ("length", "<i4")])
"""A row of a shard: the 128-bit hash of its token ids, and how many they are."""

# There are as many keys as sentences: not all of them are copied at once.
_BLOCK = 1 << 16


class CacheDamaged(RuntimeError):  # noqa: N818 - read aloud: the cache is damaged
    """A file of a cache is not what was written."""

    def __init__(self, path: Path, complaint: str, *, delete: Path | None = None) -> None:
        self.path, self.complaint = path, complaint
        super().__init__(
            f"{path}: {complaint}. Delete {storage.places(delete or path.parent)} and repeat the "
            "command: it rebuilds that and nothing else"
        )


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """blake2b of the canonical JSON, 32 hex digits."""
    return hashlib.blake2b(canonical(value).encode(), digest_size=16).hexdigest()


class Sealed(NamedTuple):
    """A folder of ``.npy`` files and the record (``shard.json``, ``plan.json``) that vouches for
    them: their sizes and checksums, a few ``facts``, and a checksum of all that."""

    folder: Path
    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @classmethod
    def write(cls, path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Write a folder: an ``.npy`` for each array, then the record, whose path this is.

        The folder appears under its name when all of it is on disk.
        """
        cls.write_parts(path, [arrays], facts)

    @classmethod
    def write_parts(
        cls, path: Path, parts: Iterable[Mapping[str, np.ndarray]], facts: Mapping[str, Any]
    ) -> None:
        """``write`` for arrays too large for memory: their parts come one after the other."""
        with atomic_folder(path.parent) as temporary:
            columns: dict[str, Column] = {}
            for part in parts:
                for name, array in part.items():
                    if name not in columns:
                        file = temporary / f"{name}.npy"
                        columns[name] = Column(file, array.dtype, array.shape[1:])
                    columns[name].append(array)
            files = {}
            for name, column in columns.items():
                column.close()
                file = temporary / f"{name}.npy"
                files[file.name] = {"bytes": file.stat().st_size, "blake2b": checksum(file)}
            content = {"facts": dict(facts), "files": files}
            seal = digest(content)
            (temporary / path.name).write_text(canonical({**content, "seal": seal}))

    @classmethod
    def read(cls, path: Path) -> "Sealed":
        """Read the record at ``path``.

        Raises:
            CacheDamaged: if it is missing or not, byte for byte, what was written.
        """
        try:
            text = path.read_text()
            content = json.loads(text)
            seal = content.pop("seal")
        except FileNotFoundError:
            raise CacheDamaged(path, "the file is missing") from None
        except (ValueError, AttributeError, KeyError, TypeError):
            raise CacheDamaged(path, "not the JSON that was written") from None
        sealed = canonical({**content, "seal": seal}) == text
        if not sealed or seal != digest(content):
            raise CacheDamaged(path, "its checksum does not fit its content")
        return cls(path.parent, content["facts"], content["files"])

    def verify(self, name: str) -> None:
        """Check the file of one array.

        Raises:
            CacheDamaged: naming the file, if its size or its checksum is another.
        """
        path = self.folder / f"{name}.npy"
        expected = self.files[path.name]
        if not path.is_file():
            raise CacheDamaged(path, "the file is missing")
        if (size := path.stat().st_size) != expected["bytes"]:
            raise CacheDamaged(path, f"{size:,} bytes where {expected['bytes']:,} were written")
        if checksum(path) != expected["blake2b"]:
            raise CacheDamaged(path, "its checksum does not fit its content")

    def map(self, name: str) -> Shaped[np.ndarray, "N ..."]:
        """Map one array, verified before, into memory."""
        # A plain array: slicing np.memmap costs several times as much.
        path = self.folder / f"{name}.npy"
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))

    def array(self, name: str) -> Shaped[np.ndarray, "N ..."]:
        """Verify one array, and map it into memory."""
        self.verify(name)
        return self.map(name)


def keys(hashes: UInt[np.ndarray, "R 2"]) -> Shaped[np.ndarray, "R"]:
    """128-bit hashes as 16-byte strings: of all NumPy types of that size, only they sort fast."""
    return np.ascontiguousarray(hashes, dtype="<u8").view("S16").reshape(-1)


def locate(
    sorted_keys: Shaped[np.ndarray, "N"], wanted: Shaped[np.ndarray, "R"]
) -> Int[np.ndarray, "R"]:
    """Where each of ``wanted`` stands in ``sorted_keys``; -1 where it doesn't."""
    place = np.full(len(wanted), -1)
    for start in range(0, len(wanted) if len(sorted_keys) else 0, _BLOCK):
        part = wanted[start : start + _BLOCK]
        at = np.minimum(np.searchsorted(sorted_keys, part), len(sorted_keys) - 1)
        place[start : start + _BLOCK] = np.where(sorted_keys[at] == part, at, -1)
    return place


def distinct(row_keys: Shaped[np.ndarray, "R"]) -> Int[np.ndarray, "D"]:
    """Where each key stands first, in the order of the keys: ``np.unique`` with fewer copies."""
    order = np.argsort(row_keys, kind="stable")
    new = np.ones(len(order), bool)
    for start in range(1, len(order), _BLOCK):
        part = order[start - 1 : start + _BLOCK]
        new[start : start + _BLOCK] = row_keys[part[1:]] != row_keys[part[:-1]]
    return order[new]


class Planned(NamedTuple):
    """One shard as a plan wants it."""

    number: int
    keys: Shaped[np.ndarray, "R"]
    token_budget: int


class Ledger(NamedTuple):
    """What is in a cache's folder. ``key`` is sorted, the others stand beside it: for each row
    its shard's number, the first of its tokens there, and how many they are."""

    folder: Path
    shards: dict[int, Sealed]
    planned: list[Planned]
    key: Shaped[np.ndarray, "N"]
    shard: Int[np.ndarray, "N"]
    start: Int[np.ndarray, "N"]
    length: Int[np.ndarray, "N"]

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """Read plans and rows of the cache in ``folder``, both verified; no states are read.

        Of a cache in a bucket its basis is fetched, too.
        """
        storage.settle(folder, "plans/*", "basis")
        storage.settle(folder, "shards/*", only=("shard.json", "rows.npy"))
        shards = {
            int(path.name): Sealed.read(path / "shard.json")
            for path in _numbered(folder / "shards")
        }
        rows = [sealed.array("rows") for sealed in shards.values()]
        counts = [len(part) for part in rows]
        # One column after the other: there are as many rows as sentences.
        key = _filled((keys(part["hash"]) for part in rows), counts, "S16")
        order = np.argsort(key)
        key = key[order]
        shard = _filled(shards, counts, np.int32)[order]
        length = _filled((part["length"] for part in rows), counts, np.int32)[order]
        ends = (np.cumsum(part["length"], dtype=np.int64) for part in rows)
        start = _filled(ends, counts, np.int64)[order] - length
        planned = [planned for path in _numbered(folder / "plans") for planned in _planned(path)]
        return cls(folder, shards, planned, key, shard, start, length)

    @property
    def next_shard(self) -> int:
        """The first number that no shard has, finished or planned."""
        return 1 + max([-1, *self.shards, *(planned.number for planned in self.planned)])

    @property
    def next_plan(self) -> int:
        """The first number that no plan has."""
        return 1 + max([-1, *(int(path.name) for path in _numbered(self.folder / "plans"))])

    @property
    def complete(self) -> bool:
        """Is every row that was ever planned in a finished shard?"""
        return all((locate(self.key, planned.keys) >= 0).all() for planned in self.planned)


def _filled(
    parts: Iterable[Shaped[np.ndarray, "M"] | int], counts: Sequence[int], dtype: DTypeLike
) -> Shaped[np.ndarray, "N"]:
    """The parts, end to end; only one of them is there at a time."""
    array, end = np.empty(sum(counts), dtype), 0
    for part, count in zip(parts, counts, strict=True):
        array[end : end + count] = part
        end += count
    return array


def _numbered(folder: Path) -> list[Path]:
    """Finished folders, in order; unfinished ones have hidden names."""
    return sorted(path for path in folder.glob("*") if path.name.isdigit())


def _planned(folder: Path) -> list[Planned]:
    plan = Sealed.read(folder / "plan.json")
    numbers, first = np.unique(plan.array("shard"), return_index=True)
    parts = np.split(keys(plan.array("hashes")), first[1:])
    budget = plan.facts["token_budget"]
    return [Planned(int(n), part, budget) for n, part in zip(numbers, parts, strict=True)]
