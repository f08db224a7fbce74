"""Safetensors files: written whole, read as views of the file, damage named. No pickle."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Shaped

from xdistil_jax import weights
from xdistil_jax.files import write_atomic
from xdistil_jax.models.hub import CheckpointError
from xdistil_jax.sharding import fetched
from xdistil_jax.trees import leaves

_INDEX = "model.safetensors.index.json"
_DTYPES = {**weights.DTYPES, "BF16": jnp.bfloat16.dtype}


def fingerprint(params: Mapping[str, Any]) -> str:
    """blake2b over sorted paths, shapes, dtypes and bytes: 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in leaves(params):
        array = np.asarray(fetched(leaf), order="C")
        digest.update(f"{path}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write one file, whole or not at all, with the fingerprint of what it holds."""
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in tensors.items()}
    metadata = {"format": "pt", "fingerprint": fingerprint(arrays)}
    write_atomic(path, *_in_order(safetensors.numpy.save(arrays, metadata), metadata))


def _in_order(content: bytes, metadata: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """A file's header and the rest, ``metadata`` in its own order: the library has it in any."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    ordered = {**header, "__metadata__": metadata}
    text = json.dumps(ordered, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, memoryview(content)[8 + size :]


def read_tensors(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Tensors by name, as views of the mapped file, held to the fingerprint that ours carry.

    Nothing is copied: what is read is the operating system's to drop again.

    Raises:
        CheckpointError: naming the file, if it is absent, torn, or, where it carries a
            fingerprint, changed in any bit.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        tensors, metadata = weights.views(np.memmap(path, np.uint8, mode="r"), _DTYPES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): fetch or write it again") from error
    recorded = metadata.get("fingerprint")
    if recorded is not None and recorded != fingerprint(tensors):
        raise CheckpointError(
            f"{path} is damaged (its content doesn't fit its fingerprint): fetch or write it again"
        )
    return tensors


def read_folder(folder: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """All tensors of a checkpoint: one file, or several with an index.

    Raises:
        CheckpointError: if a file is missing or damaged, or there are pickled weights only.
    """
    whole, index = folder / "model.safetensors", folder / _INDEX
    if whole.is_file():
        return read_tensors(whole)
    if index.is_file():
        return _read_sharded(folder, index)
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickled)}), which may run code when "
            "they are read: convert them once, where you trust them, with transformers and torch: "
            "AutoModel.from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise CheckpointError(f"{folder} has no model.safetensors: nothing to load")


def _read_sharded(folder: Path, index: Path) -> dict[str, np.ndarray]:
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(where.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of a checkpoint ({error!r})") from error
    if odd := [name for name in files if Path(name).name != name]:
        raise CheckpointError(f"{index} names files outside its folder: {', '.join(odd)}")
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder}: {', '.join(absent)} of {index.name} missing: fetch again")
    held = {name: read_tensors(folder / name) for name in files}
    if lost := [name for name, file in where.items() if name not in held[file]]:
        raise CheckpointError(
            f"{folder}: {len(lost)} tensors aren't in the file that {index.name} says "
            f"({', '.join(sorted(lost)[:8])}): fetch again"
        )
    return {name: held[file][name] for name, file in where.items()}
