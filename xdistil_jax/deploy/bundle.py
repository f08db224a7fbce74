"""What leaves the building: weights, sizes, tokenizer, labels - one folder, without JAX.

``model.safetensors`` · ``config.json`` (kind of model, sizes, maximum length, decoding, temperature
of the scores, whether it takes pairs) · ``tokenizer.json`` (the cut tokenizer that the student was
trained with) · ``labels.json``; exported ones have graphs, too. The config holds the checksums of
the others and of itself. Each file is read once: what was found right is what is used.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xdistil_jax import files, storage, weights
from xdistil_jax.data.tokenizer import Tokenizer, parse_tokenizer
from xdistil_jax.deploy.checks import check_config, check_shapes, read_labels
from xdistil_jax.labels import ClassSet, Decoding, Labels
from xdistil_jax.models import hub

_FORMAT = 2
_CONFIG, _WEIGHTS, _TOKENIZER, _LABELS = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "labels.json",
)
_SEALED = (_WEIGHTS, _TOKENIZER, _LABELS)
# No config or label file comes near; of the others a greater one is none of ours.
_LARGEST = {_CONFIG: 1 << 22, _LABELS: 1 << 22, _TOKENIZER: 1 << 28}
_Read = TypeVar("_Read")


class BundleError(ValueError):
    """A folder that is no bundle, or a damaged one; names the file."""


@dataclass(frozen=True)
class Bundle:
    """A student as it is deployed. ``weights`` are flat: path -> fp32 array; none if not asked for.

    Scores are the softmax of the logits over ``temperature``. ``pairs``: does a classifier take
    pairs of texts? None where the folder doesn't say, as a tagger's, and those that older versions
    wrote.
    """

    kind: str
    sizes: dict[str, Any]
    weights: dict[str, np.ndarray]
    tokenizer: Tokenizer
    tagset: Labels
    max_length: int
    decoding: Decoding
    temperature: float = 1.0
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
    temperature: float = 1.0,
    pairs: bool | None = None,
) -> None:
    """Write a bundle; the folder appears whole or not at all."""
    # Of a deployed student's few needs, writing weights is none.
    from safetensors.numpy import save_file

    with files.atomic_folder(folder) as temporary:
        tensors = {path: np.ascontiguousarray(leaf, np.float32) for path, leaf in weights.items()}
        save_file(tensors, temporary / _WEIGHTS)
        tokenizer.save(temporary)
        whole = isinstance(tagset, ClassSet)
        named = {"classes": tagset.classes} if whole else {"types": tagset.types}
        labels = json.dumps(named, ensure_ascii=False)
        (temporary / _LABELS).write_text(labels, encoding="utf-8")
        config = {
            "format": _FORMAT,
            "kind": kind,
            "sizes": dict(sizes),
            "max_length": max_length,
            "decoding": decoding,
            "temperature": temperature,
            **({} if pairs is None else {"pairs": pairs}),
            "checksums": {name: files.checksum(temporary / name) for name in _SEALED},
        }
        write_config(temporary, config)


def seal(folder: str | Path, names: Iterable[str]) -> None:
    """Hold files of a bundle's folder, beside those that every bundle has, to their checksums."""
    folder = Path(folder)
    config = _read_config(folder / _CONFIG)
    found = {name: files.checksum(folder / name) for name in names}
    write_config(folder, {**config, "checksums": {**config["checksums"], **found}})


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """config.json, with its own checksum in it."""
    sealed = {**config, "checksum": _checksum(config)}
    (folder / _CONFIG).write_text(json.dumps(sealed, indent=2), encoding="utf-8")


def load_bundle(folder: str | Path, *, graph: str | None = None) -> Bundle:
    """Read a bundle, after the checksums of all that is read were found right.

    With ``graph``, the name of a file that takes the weights' place, that one is held to its
    checksum, and the bundle comes without weights.

    Raises:
        BundleError: naming the file that is missing, damaged, or of a newer version.
    """
    folder, model = Path(folder), graph or _WEIGHTS
    for name in (_CONFIG, model, _TOKENIZER, _LABELS):
        if not (folder / name).is_file():
            raise BundleError(f"{folder} is no student: {name} is missing")
    config = _read_config(folder / _CONFIG)
    content = {name: _read(folder / name, config) for name in (model, _TOKENIZER, _LABELS)}
    tagset = _trusted(folder / _LABELS, lambda: read_labels(_parse(content[_LABELS])))
    tokenizer = _trusted(
        folder / _TOKENIZER, lambda: parse_tokenizer(content[_TOKENIZER].tobytes(), _TOKENIZER)
    )
    found: dict[str, np.ndarray] = {}
    if graph is None:
        found = _trusted(folder / _WEIGHTS, lambda: weights.views(content[_WEIGHTS])[0])
        pieces = tokenizer.vocab_size
        _trusted(folder / _CONFIG, lambda: check_shapes(config, tagset, pieces, found))
    return Bundle(
        config["kind"],
        config["sizes"],
        found,
        tokenizer,
        tagset,
        config["max_length"],
        config["decoding"],
        float(config.get("temperature", 1.0)),
        config.get("pairs"),
    )


def push_bundle(
    folder: str | Path, name: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Upload a student, its own or its run's folder, to ``owner/name`` on the Hugging Face hub.

    Only files of a bundle go, after their checksums were found right. Gives the commit's URL.

    Raises:
        BundleError: if it is damaged, or the hub refuses.
    """
    folder = Path(folder)
    folder = folder / "student" if (folder / "student").is_dir() else folder
    load_bundle(folder)
    config = _read_config(folder / _CONFIG)
    for each in sorted(config["checksums"].keys() - set(_SEALED)):
        if not (folder / each).is_file():
            raise BundleError(f"{folder} is no whole student: {each} is missing")
        _read(folder / each, config)
    files_of_it = [_CONFIG, *config["checksums"], "README.md"]
    try:
        return hub.push(folder, name, files_of_it, private=private, revision=revision)
    except hub.CheckpointError as error:
        raise BundleError(str(error)) from error


def _read(path: Path, config: Mapping[str, Any]) -> np.ndarray:
    """A file's bytes, uint8 [N], held to its checksum."""
    _refuse_large(path)
    content = np.fromfile(path, np.uint8)
    if files.digest(content) != config["checksums"].get(path.name):
        raise _damaged(path, "its checksum is not the one in config.json")
    return content


def _refuse_large(path: Path) -> None:
    largest = _LARGEST.get(path.name)
    if largest is not None and path.stat().st_size > largest:
        raise _damaged(path, f"it is larger than {largest:,} bytes")


def _parse(content: np.ndarray) -> Any:
    return json.loads(content.tobytes())


def _trusted(path: Path, read: Callable[[], _Read]) -> _Read:
    """What ``read`` gives, or what it complains of as a complaint of the file."""
    try:
        return read()
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    _refuse_large(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it can't be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise _damaged(path, f"expected a JSON object, found {type(config).__name__}")
    version = config.get("format")
    if isinstance(version, int) and version != _FORMAT:
        cure = "update xdistil_jax" if version > _FORMAT else "distil the student again"
        raise BundleError(f"{path}: format {version}, and this version reads {_FORMAT}; {cure}")
    if _checksum(config) != config.get("checksum"):
        raise _damaged(path, "its checksum is not that of its content")
    _trusted(path, lambda: check_config(config))
    return config


def _checksum(config: Mapping[str, Any]) -> str:
    content = {key: value for key, value in config.items() if key != "checksum"}
    canonical = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _damaged(path: Path, how: str) -> BundleError:
    return BundleError(
        f"{path} is damaged: {how}. Copy the student again, or delete "
        f"{storage.places(path.parent)} and repeat the run, or its export"
    )
