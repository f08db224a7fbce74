"""Hugging Face's BERT checkpoints and parameter files (safetensors) <-> nested dicts on the host.

Arrays come back as NumPy: place them on the devices before they are used step after step.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array

from xdistil_jax.files import write_atomic
from xdistil_jax.models.encoder import EncoderSpec, parameter_shapes, stack_layers, unstack_layers
from xdistil_jax.trees import leaves, unflatten
from xdistil_jax.types import Params

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
}
_OPTIONS = {
    "max_position_embeddings": "positions",
    "type_vocab_size": "token_types",
    "hidden_dropout_prob": "dropout",
    "layer_norm_eps": "norm_epsilon",
    "initializer_range": "initializer",
}
_EMBED = {
    "embed/table": "embeddings.word_embeddings.weight",
    "embed/positions": "embeddings.position_embeddings.weight",
    "embed/types": "embeddings.token_type_embeddings.weight",
}
_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention/norm": "attention.output.LayerNorm",
    "feed_forward/up": "intermediate.dense",
    "feed_forward/down": "output.dense",
    "feed_forward/norm": "output.LayerNorm",
}
_OTHER = {"head": "classifier", "embed/norm": "embeddings.LayerNorm"}
# What other heads and old versions leave in a file, and an encoder doesn't need.
_IGNORED = ("pooler.", "cls.", "classifier.", "qa_outputs.", "embeddings.position_ids")


class CheckpointError(ValueError):
    """A checkpoint that can't be read as it is; the message says what to do."""


class LoadedEncoder(NamedTuple):
    """``labels`` are the names of the head's columns, or None where the head is fresh."""

    spec: EncoderSpec
    params: Params
    labels: tuple[str, ...] | None


def load_encoder(
    name_or_folder: str | Path,
    classes: int,
    *,
    labels: Sequence[str] | None = None,
    key: Array | None = None,
    stacked: bool = True,
) -> LoadedEncoder:
    """Read a BERT-type checkpoint from a local folder or, by its name, from the hub.

    The head of a token-classification checkpoint is kept if it has ``classes`` columns; with
    ``labels``, if its columns bear exactly these names, and then in this order. Otherwise, and for
    base checkpoints, a fresh head is drawn from ``key``.

    Raises:
        CheckpointError: naming the file, and the tensors that are missing, unexpected or misshapen.
    """
    if labels is not None and len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for a head of {classes} classes")
    folder = _find_folder(name_or_folder)
    config = _read_config(folder / "config.json")
    spec = replace(_read_spec(config, folder / "config.json", classes), stacked=False)
    tensors = {_plain_name(name): array for name, array in _read_weights(folder).items()}
    own = _head_labels(config, classes, labels)
    expected = {
        path: (_hf_name(path), shape[::-1] if path.endswith("/kernel") else shape)
        for path, shape in leaves(parameter_shapes(spec))
        if own is not None or not path.startswith("head/")
    }
    _check(folder, dict(expected.values()), tensors)
    turned = {
        p: tensors[n].T if p.endswith("/kernel") else tensors[n] for p, (n, _) in expected.items()
    }
    params = unflatten({p: np.asarray(a, np.float32, order="C") for p, a in turned.items()})
    if own is None:
        params["head"] = _fresh_head(spec, key, folder)
    elif labels is not None:
        order = [own.index(label) for label in labels]
        params["head"] = {name: leaf[..., order] for name, leaf in params["head"].items()}
        own = tuple(labels)
    if stacked:
        return LoadedEncoder(replace(spec, stacked=True), stack_layers(params), own)
    return LoadedEncoder(spec, params, own)


def save_encoder(
    folder: str | Path, spec: EncoderSpec, params: Params, labels: Sequence[str]
) -> None:
    """Write a folder that ``BertForTokenClassification.from_pretrained`` and we can load.

    Each file appears whole; config.json, without which nothing loads the folder, comes last.
    """
    if len(labels) != spec.classes:
        raise ValueError(f"{len(labels)} labels for a head of {spec.classes} classes")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    single = unstack_layers(params) if spec.stacked else params
    tensors = {}
    for path, leaf in leaves(single):
        name = _hf_name(path)
        prefix = "" if name.startswith("classifier.") else "bert."
        tensors[prefix + name] = np.asarray(leaf).T if path.endswith("/kernel") else leaf
    _write_tensors(folder / "model.safetensors", tensors)
    config = {
        "architectures": ["BertForTokenClassification"],
        "model_type": "bert",
        **{theirs: getattr(spec, ours) for theirs, ours in {**_SIZES, **_OPTIONS}.items()},
        "attention_probs_dropout_prob": spec.dropout,
        "hidden_act": {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[spec.activation],
        "position_embedding_type": "absolute",
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    write_atomic(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def fingerprint(params: Mapping[str, Any]) -> str:
    """blake2b over sorted paths, shapes, dtypes and bytes: 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in leaves(params):
        array = np.asarray(leaf, order="C")
        digest.update(f"{path}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in tensors.items()}
    metadata = {"format": "pt", "fingerprint": fingerprint(arrays)}
    write_atomic(path, safetensors.numpy.save(arrays, metadata))


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors by name, held to the fingerprint that a file of ours carries."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            recorded = (file.metadata() or {}).get("fingerprint")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): fetch or write it again") from error
    if recorded is not None and recorded != fingerprint(tensors):
        raise CheckpointError(
            f"{path} is damaged (its content doesn't fit its fingerprint): fetch or write it again"
        )
    return tensors


def _find_folder(name_or_folder: str | Path) -> Path:
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder
    name = str(name_or_folder)
    if isinstance(name_or_folder, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(
            f"there is no folder {name}: give a folder with config.json and model.safetensors, "
            "or a name on the Hugging Face hub"
        )
    try:
        import huggingface_hub

        patterns = ["*.json", "*.safetensors", "*.txt"]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises its own, the HTTP library's and OS errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{name!r} is no folder here, and the Hugging Face hub didn't give it ({reason}): "
            "check name and network, or give a local folder"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}: a checkpoint folder needs one")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def _read_spec(config: Mapping[str, Any], path: Path, classes: int) -> EncoderSpec:
    family = config.get("model_type")
    if family != "bert":
        raise CheckpointError(
            f"{path}: model_type {family!r} is not supported: give a checkpoint of type 'bert' "
            "(BERT, multilingual BERT, MiniLM, …)"
        )
    for field, wanted in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if config.get(field, wanted) != wanted:
            raise CheckpointError(
                f"{path}: {field} {config[field]!r}: only {wanted!r} is supported"
            )
    activation = config.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"{path}: hidden_act {activation!r} is not supported, only {', '.join(_ACTIVATIONS)}"
        )
    for field in _SIZES:
        if field not in config:
            raise CheckpointError(f"{path}: field {field!r} is missing")
    given = {field: config[field] for field in (*_SIZES, *_OPTIONS) if field in config}
    for field, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{path}: {field} is {value!r}: expected a number")
    known = {{**_SIZES, **_OPTIONS}[field]: value for field, value in given.items()}
    try:
        return EncoderSpec(**known, classes=classes, activation=_ACTIVATIONS[activation])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        files = sorted(folder.glob("model-*-of-*.safetensors"))
    if files:
        return {name: array for file in files for name, array in _read_tensors(file).items()}
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickled)}), which may run code when "
            "they are read: convert them once, where you trust them, with transformers and torch: "
            "BertModel.from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise CheckpointError(f"{folder} has no model.safetensors: nothing to load")


def _plain_name(name: str) -> str:
    """Tensor names as of today and without the prefix: BERT's first files say gamma and beta."""
    name = name.removeprefix("bert.")
    return name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias")


def _hf_name(path: str) -> str:
    """``layer_1/attention/query/kernel`` -> ``encoder.layer.0.attention.self.query.weight``."""
    if path in _EMBED:
        return _EMBED[path]
    block, leaf = path.rsplit("/", 1)
    suffix = "bias" if leaf == "bias" else "weight"
    if block in _OTHER:
        return f"{_OTHER[block]}.{suffix}"
    layer, inner = block.split("/", 1)
    return f"encoder.layer.{int(layer.removeprefix('layer_')) - 1}.{_LAYER[inner]}.{suffix}"


def _check(
    folder: Path, wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray]
) -> None:
    problems = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [n for n in tensors if n not in wanted and not n.startswith(_IGNORED)],
        "misshapen": [
            f"{name} {tensors[name].shape} instead of {shape}"
            for name, shape in wanted.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    told = [
        f"{len(names)} {kind} ({', '.join(sorted(names)[:8])}{', …' if len(names) > 8 else ''})"
        for kind, names in problems.items()
        if names
    ]
    if told:
        raise CheckpointError(
            f"{folder}: the tensors don't fit config.json; {'; '.join(told)}. "
            "Take config.json and weights of one and the same checkpoint"
        )


def _head_labels(
    config: Mapping[str, Any], classes: int, labels: Sequence[str] | None
) -> tuple[str, ...] | None:
    """Names of the columns of the checkpoint's own head, or None where it doesn't fit."""
    if "BertForTokenClassification" not in (config.get("architectures") or ()):
        return None
    named = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    own = tuple(named[number] for number in sorted(named, key=int))
    fits = len(own) == classes and (labels is None or sorted(own) == sorted(labels))
    return own if fits else None


def _fresh_head(spec: EncoderSpec, key: Array | None, folder: Path) -> Params:
    if key is None:
        raise CheckpointError(
            f"{folder} brings no head for these {spec.classes} classes: "
            "pass key=jax.random.key(seed) to draw a fresh one"
        )
    kernel = spec.initializer * jax.random.normal(key, (spec.width, spec.classes))
    return {"kernel": np.asarray(kernel), "bias": np.zeros(spec.classes, np.float32)}
