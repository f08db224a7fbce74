"""What a teacher cache was made from, and how it is found, locked, listed and removed."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from xdistil_jax import storage
from xdistil_jax.files import write_atomic
from xdistil_jax.models.functional import Spec
from xdistil_jax.models.layers import unstack_layers
from xdistil_jax.models.tensors import fingerprint
from xdistil_jax.teacher.codec import find_codec
from xdistil_jax.teacher.shards import CacheDamaged, Ledger, canonical, digest
from xdistil_jax.types import Params

try:
    import fcntl
except ImportError:  # Windows has no flock: one builder at a time is up to the user there.
    fcntl = None

FORMAT = 1
ID_DIGITS = 12


class CacheMismatch(ValueError):  # noqa: N818 - as CacheDamaged
    """A cache that isn't the one that was asked for, or that this version can't read."""


@dataclass(frozen=True)
class CacheSettings:
    """What decides every number in a cache, except the sentences.

    ``teacher`` and ``tokenizer`` are fingerprints; ``dtype`` is that of the teacher's arithmetic.
    The basis of a PCA ``codec`` is fitted to the text that a cache is begun with, and used for all
    that is added later: it is no setting, but a part of the folder, and each shard names it.
    """

    teacher: str
    tokenizer: str
    layers: tuple[str, ...]
    max_length: int
    codec: str = "bf16"
    dtype: str = "float32"
    format_version: int = FORMAT

    def __post_init__(self) -> None:
        find_codec(self.codec)
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)

    @property
    def record(self) -> dict[str, Any]:
        """The settings as they are written in the manifest."""
        return json.loads(canonical(asdict(self)))

    @property
    def id(self) -> str:
        """The name of the cache's folder."""
        return digest(self.record)[:ID_DIGITS]


def identify_teacher(spec: Spec, params: Params) -> str:
    """``CacheSettings.teacher``: a fingerprint of the weights and of what is done with them.

    The same whether layers are stacked or not.
    """
    if getattr(spec, "stacked", False):
        spec, params = replace(spec, stacked=False), unstack_layers(params)
    return digest([fingerprint(params), repr(spec)])


class CacheInfo(NamedTuple):
    """A line of ``xdistil cache ls``. ``settings`` is empty where the manifest can't be read."""

    id: str
    bytes: int
    rows: int
    settings: dict[str, Any]
    complete: bool


def hidden_name(layer: str) -> str:
    """Name of the array, and of the file without ``.npy``, that holds a layer's states."""
    return f"hidden-{layer}"


def label(identity: str) -> str:
    """A cache's name in messages."""
    return f"teacher cache {identity[:6]}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The settings of the cache in ``folder``, as a record.

    Raises:
        CacheMismatch: if a newer version has written it.
        CacheDamaged: if it isn't the manifest that was written.
    """
    path = folder / "manifest.json"
    try:
        record = json.loads(path.read_text())["settings"]
        version = int(record["format_version"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CacheDamaged(path, "not the JSON that was written", delete=path) from None
    if version > FORMAT:
        raise CacheMismatch(
            f"{path}: format {version} was written by a newer xdistil_jax; expected at most "
            f"{FORMAT}. Update the package, or remove the cache: xdistil cache rm {folder.name}"
        )
    if digest(record)[:ID_DIGITS] != folder.name:
        raise CacheDamaged(path, "its settings do not fit the folder's name", delete=path)
    return record


def has_manifest(folder: Path) -> bool:
    """Is there a manifest, right or wrong?"""
    return (folder / "manifest.json").exists()


def write_manifest(folder: Path, settings: CacheSettings) -> None:
    """Write the manifest, if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    if not has_manifest(folder):
        write_atomic(folder / "manifest.json", json.dumps({"settings": settings.record}, indent=2))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two records differ."""
    return [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]


def nearest(root: Path, settings: CacheSettings) -> tuple[str, list[str]] | None:
    """The other readable cache that differs in the fewest fields, and those fields."""
    found = []
    for folder in _folders(root):
        try:
            fields = differences(settings.record, read_manifest(folder))
        except (CacheMismatch, CacheDamaged):
            continue
        if fields:
            found.append((folder.name, fields))
    return min(found, key=lambda other: (len(other[1]), other[0]), default=None)


def refuse_misfit(root: Path, settings: CacheSettings, only: str) -> None:
    """Check that ``only``, an id or the start of one, is the cache that ``settings`` ask for.

    Raises:
        CacheMismatch: naming the fields that differ, with both values.
    """
    if only and settings.id.startswith(only):
        return
    folder = find_cache(root, only)
    ours, theirs = settings.record, read_manifest(folder)
    fields = "; ".join(
        f"{field} is {theirs.get(field)} there, {ours.get(field)} here"
        for field in differences(ours, theirs)
    )
    raise CacheMismatch(
        f"{folder}: the cache that was asked for does not fit: {fields}. Change these settings, "
        f"or leave the cache out: {settings.id} fits and is built where it is missing"
    )


def find_cache(root: str | Path, identity: str) -> Path:
    """The folder of the cache whose id is or starts with ``identity``.

    Raises:
        CacheMismatch: if there is none, or more than one; lists those that there are.
    """
    folders = _folders(Path(root))
    found = [folder for folder in folders if identity and folder.name.startswith(identity)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(folder.name for folder in folders) or "none"
    many = "more than one cache starts" if found else "no cache starts"
    raise CacheMismatch(f"{root}: {many} with {identity!r}; there are: {names}")


def list_caches(root: str | Path) -> list[CacheInfo]:
    """Every cache in ``root``; damaged and newer ones too, as not complete."""
    return [_describe(folder) for folder in _folders(Path(root))]


def remove_cache(root: str | Path, identity: str) -> str:
    """Remove the cache whose id is or starts with ``identity``; gives its id.

    Raises:
        CacheMismatch: if there is no such cache, more than one, or another process is building it.
    """
    folder = find_cache(root, identity)
    with lock(folder) as free:
        if not free:
            raise CacheMismatch(
                f"{folder}: another process is building this cache; try again later"
            )
        # A hidden name first, so that a removal cut short doesn't look like damage.
        hidden = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)
        folder.rename(hidden)
        shutil.rmtree(hidden)
        storage.remove(folder)
    return folder.name


@contextmanager
def lock(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a cache; gives False if another process has it and ``wait`` is False."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder and never deleted: two builders can't come to hold two locks of one name.
    with folder.with_name(f".{folder.name}.lock").open("a") as file:
        yield _acquire(file.fileno(), wait=wait)


def _acquire(descriptor: int, *, wait: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _folders(root: Path) -> list[Path]:
    for name in storage.names(root):
        storage.refresh(root / name)
    found = root.glob("*") if root.is_dir() else []
    hexadecimal = set("0123456789abcdef")
    return sorted(
        path for path in found if len(path.name) == ID_DIGITS and set(path.name) <= hexadecimal
    )


def _describe(folder: Path) -> CacheInfo:
    size = storage.bytes_of(folder)
    try:
        settings, ledger = read_manifest(folder), Ledger.read(folder)
    except (CacheDamaged, CacheMismatch):
        return CacheInfo(folder.name, size, 0, {}, complete=False)
    return CacheInfo(folder.name, size, len(ledger.key), settings, ledger.complete)
