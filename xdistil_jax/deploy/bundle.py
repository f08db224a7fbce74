"""What leaves the building: weights, sizes, tokenizer, labels - one folder, without JAX.

``model.safetensors`` · ``config.json`` (kind of model, sizes, maximum length, decoding, whether it
takes pairs) · ``tokenizer.json`` (the cut tokenizer that the student was trained with) ·
``labels.json``; exported ones have graphs, too. The config holds the checksums of the others and of
itself.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from xdistil_jax import files, storage
from xdistil_jax.data.tokenizer import Tokenizer, load_tokenizer
from xdistil_jax.labels import ClassSet, Decoding, Labels, TagSet

_FORMAT = 2
_SEALED = ("model.safetensors", "tokenizer.json", "labels.json")


class BundleError(ValueError):
    """A folder that is no bundle, or a damaged one; names the file."""


@dataclass(frozen=True)
class Bundle:
    """A student as it is deployed. ``weights`` are flat: path -> fp32 array.

    ``pairs``: does a classifier take pairs of texts? None where the folder doesn't say, as a
    tagger's, and those that older versions wrote.
    """

    kind: str
    sizes: dict[str, Any]
    weights: dict[str, np.ndarray]
    tokenizer: Tokenizer
    tagset: Labels
    max_length: int
    decoding: Decoding
    pairs: bool | None = None


def save_bundle(
    folder: str | Path,
    *,
    kind: str,
    sizes: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    tokenizer: Tokenizer,
    tagset: Labels,
    max_length: int,
    decoding: Decoding,
    pairs: bool | None = None,
) -> None:
    """Write a bundle; the folder appears whole or not at all."""
    with files.atomic_folder(folder) as temporary:
        tensors = {path: np.ascontiguousarray(leaf, np.float32) for path, leaf in weights.items()}
        save_file(tensors, temporary / "model.safetensors")
        tokenizer.save(temporary)
        whole = isinstance(tagset, ClassSet)
        named = {"classes": tagset.classes} if whole else {"types": tagset.types}
        labels = json.dumps(named, ensure_ascii=False)
        (temporary / "labels.json").write_text(labels, encoding="utf-8")
        config = {
            "format": _FORMAT,
            "kind": kind,
            "sizes": dict(sizes),
            "max_length": max_length,
            "decoding": decoding,
            **({} if pairs is None else {"pairs": pairs}),
            "checksums": {name: files.checksum(temporary / name) for name in _SEALED},
        }
        write_config(temporary, config)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """config.json, with its own checksum in it."""
    sealed = {**config, "checksum": _checksum(config)}
    (folder / "config.json").write_text(json.dumps(sealed, indent=2), encoding="utf-8")


def seal(folder: str | Path, names: Iterable[str]) -> None:
    """Hold files of a bundle's folder, beside those that every bundle has, to their checksums."""
    folder = Path(folder)
    config = _read_config(folder / "config.json")
    found = {name: files.checksum(folder / name) for name in names}
    write_config(folder, {**config, "checksums": {**config["checksums"], **found}})


def load_bundle(folder: str | Path) -> Bundle:
    """Read a bundle, after all of its checksums were found right.

    Raises:
        BundleError: naming the file that is missing, damaged, or of a newer version.
    """
    folder = Path(folder)
    for name in ("config.json", *_SEALED):
        if not (folder / name).is_file():
            raise BundleError(f"{folder} is no student: {name} is missing")
    config = _read_config(folder / "config.json")
    for name in _SEALED:
        if files.checksum(folder / name) != config["checksums"][name]:
            raise _damaged(folder / name, "its checksum is not the one in config.json")
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    kind, named = (ClassSet, "classes") if "classes" in labels else (TagSet, "types")
    return Bundle(
        config["kind"],
        config["sizes"],
        load_file(folder / "model.safetensors"),
        load_tokenizer(folder),
        kind(tuple(labels[named])),
        config["max_length"],
        config["decoding"],
        config.get("pairs"),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, f"it can't be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise _damaged(path, f"expected a JSON object, found {type(config).__name__}")
    version = config.get("format")
    if isinstance(version, int) and version != _FORMAT:
        cure = "update xdistil_jax" if version > _FORMAT else "distil the student again"
        raise BundleError(f"{path}: format {version}, and this version reads {_FORMAT}; {cure}")
    if _checksum(config) != config.get("checksum"):
        raise _damaged(path, "its checksum is not that of its content")
    return config


def _checksum(config: Mapping[str, Any]) -> str:
    content = {key: value for key, value in config.items() if key != "checksum"}
    canonical = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _damaged(path: Path, how: str) -> BundleError:
    return BundleError(
        f"{path} is damaged: {how}. Copy the student again, or delete "
        f"{storage.places(path.parent)} and repeat the run"
    )
