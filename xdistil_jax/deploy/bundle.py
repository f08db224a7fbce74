"""What leaves the building: weights, sizes, tokenizer, labels - one folder, without JAX.

``model.safetensors`` · ``config.json`` (kind of model, sizes, maximum length, languages) ·
``tokenizer.json`` (the cut tokenizer that the student was trained with) · ``labels.json``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from xdistil_jax import files
from xdistil_jax.data.tokenizer import Tokenizer, load_tokenizer
from xdistil_jax.labels import TagSet

_FORMAT = 1
_FILES = ("model.safetensors", "config.json", "tokenizer.json", "labels.json")


class BundleError(ValueError):
    """A folder that is no bundle, or a damaged one; names the file."""


@dataclass(frozen=True)
class Bundle:
    """A student as it is deployed. ``weights`` are flat: path -> fp32 array."""

    kind: str
    sizes: dict[str, Any]
    weights: dict[str, np.ndarray]
    tokenizer: Tokenizer
    tagset: TagSet
    max_length: int


def save_bundle(
    folder: str | Path,
    *,
    kind: str,
    sizes: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    tokenizer: Tokenizer,
    tagset: TagSet,
    max_length: int,
) -> None:
    """Write a bundle; the folder appears whole or not at all."""
    with files.atomic_folder(folder) as temporary:
        tensors = {path: np.ascontiguousarray(leaf, np.float32) for path, leaf in weights.items()}
        save_file(tensors, temporary / _FILES[0])
        tokenizer.save(temporary)
        config = {
            "format": _FORMAT,
            "kind": kind,
            "sizes": dict(sizes),
            "max_length": max_length,
            "checksum": files.checksum(temporary / _FILES[0]),
        }
        (temporary / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        labels = json.dumps({"types": list(tagset.types)}, ensure_ascii=False)
        (temporary / "labels.json").write_text(labels, encoding="utf-8")


def load_bundle(folder: str | Path) -> Bundle:
    """Read a bundle.

    Raises:
        BundleError: naming the file that is missing, damaged, or of a newer version.
    """
    folder = Path(folder)
    for name in _FILES:
        if not (folder / name).is_file():
            raise BundleError(f"{folder} is no student: {name} is missing (expected {_FILES})")
    config, labels = _json(folder / "config.json"), _json(folder / "labels.json")
    if config.get("format") != _FORMAT:
        raise BundleError(
            f"{folder / 'config.json'}: format {config.get('format')}, this version reads "
            f"{_FORMAT}; update xdistil_jax"
        )
    weights = folder / "model.safetensors"
    if files.checksum(weights) != config.get("checksum"):
        raise BundleError(f"{weights} is damaged: its checksum is not the one in config.json")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{weights} can't be read: {error}") from error
    return Bundle(
        config["kind"],
        config["sizes"],
        tensors,
        load_tokenizer(folder),
        TagSet(tuple(labels["types"])),
        config["max_length"],
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
