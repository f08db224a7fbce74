"""Hugging Face's checkpoints (config.json and safetensors) <-> nested dicts of parameters."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from xdistil_jax.files import write_atomic
from xdistil_jax.models import families
from xdistil_jax.models.families import AnySpec
from xdistil_jax.models.functional import abstract_params
from xdistil_jax.models.hub import CheckpointError, find_folder, read_config
from xdistil_jax.models.layers import unstack_layers
from xdistil_jax.models.modernbert import ModernBertSpec
from xdistil_jax.models.tensors import read_folder, write_tensors
from xdistil_jax.trees import leaves, unflatten
from xdistil_jax.types import Params

# What other heads and old versions leave in a file, and an encoder doesn't need.
_IGNORED = (
    "pooler.", "cls.", "classifier.", "qa_outputs.", "lm_head.", "head.", "decoder.", "score.",
    "lm_predictions.", "mask_predictions.", "vocab_transform.", "vocab_layer_norm.",
    "vocab_projector.", "pre_classifier.", "discriminator_predictions.", "generator_predictions.",
    "generator_lm_head.", "embeddings.position_ids", "embeddings.token_type_ids",
)  # fmt: skip

_LAST = ("head/kernel", "head/bias")

Place = Callable[[str, np.ndarray], Any]
"""(path of a leaf, the leaf) -> where it is to lie; called for one leaf after the other."""


def _kept(path: str, leaf: np.ndarray) -> np.ndarray:
    """As a NumPy array of our own: a view of the file would change with it."""
    return leaf if leaf.flags.writeable else np.array(leaf)


class LoadedEncoder(NamedTuple):
    """``labels`` are the names of the head's columns, or None where the head is fresh."""

    spec: AnySpec
    params: Params
    labels: tuple[str, ...] | None


def load_encoder(
    name_or_folder: str | Path,
    classes: int | None = None,
    *,
    labels: Sequence[str] | None = None,
    key: Array | None = None,
    stacked: bool = True,
    revision: str | None = None,
    place: Place = _kept,
) -> LoadedEncoder:
    """Read a checkpoint from a local folder or, by its name, from the Hugging Face hub.

    The head of a token-classification checkpoint is kept as it is where ``classes`` is None, and
    otherwise if it has ``classes`` columns; with ``labels``, if its columns bear exactly these
    names, and then in this order. So is that of a BertForSequenceClassification, but not for
    ``classes`` without ``labels``. Otherwise, and for base checkpoints, a fresh head is drawn from
    ``key``. Leaves are fp32, made one by one, the largest first, and handed to ``place`` (NumPy
    arrays without it; ``sharding.placer`` puts them on devices), so no second copy of the model is
    ever held.

    Raises:
        CheckpointError: naming the file, and the tensors that are missing, unexpected or misshapen.
    """
    if labels is not None and len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for a head of {classes} classes")
    folder = find_folder(name_or_folder, revision)
    spec, single, own = _read_spec(folder, classes, labels)
    prefix = families.FAMILIES[spec.family].prefix
    tensors = {plain_name(name, prefix): array for name, array in read_folder(folder).items()}
    fresh = _fresh_leaves(spec, single, tensors, keep=own is not None)
    wanted = {p: families.tensor_name(spec, p) for p in single if p not in fresh}
    turned = {p: shape[::-1] if p.endswith("/kernel") else shape for p, shape in single.items()}
    _check(folder, {name: turned[path] for path, name in wanted.items()}, tensors)
    if fresh and key is None:
        raise CheckpointError(
            f"{folder} brings no head for these {spec.classes} classes: "
            "pass key=jax.random.key(seed) to draw a fresh one"
        )
    spec = replace(spec, stacked=stacked)
    kept = own if labels is None or own is None else tuple(labels)
    columns = None if kept is own else [own.index(label) for label in labels]

    def make(number: int, path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path in fresh:
            return _draw(spec, path, shape, jax.random.fold_in(key, number))
        leaf = _assemble(spec, path, shape, wanted, tensors)
        return leaf if columns is None or path not in _LAST else leaf[..., columns]

    numbered = [(number, *leaf) for number, leaf in enumerate(leaves(_shapes(spec)))]
    largest_first = sorted(numbered, key=lambda leaf: -math.prod(leaf[2]))
    flat = {leaf[1]: place(leaf[1], make(*leaf)) for leaf in largest_first}
    return LoadedEncoder(spec, unflatten(flat), kept)


def read_config_spec(
    name_or_folder: str | Path, classes: int, *, revision: str | None = None
) -> AnySpec:
    """The encoder that a checkpoint's config.json describes; weights are neither read nor fetched.

    Raises:
        CheckpointError: naming the file, or the name that the hub doesn't have.
    """
    path = find_folder(name_or_folder, revision, ("config.json",)) / "config.json"
    config = read_config(path)
    try:
        return families.read_spec(config, classes)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def save_encoder(folder: str | Path, spec: AnySpec, params: Params, labels: Sequence[str]) -> None:
    """Write a folder that ``AutoModelForTokenClassification.from_pretrained`` and we can load.

    Each file appears whole; config.json, without which nothing loads the folder, comes last.
    """
    if len(labels) != spec.classes:
        raise ValueError(f"{len(labels)} labels for a head of {spec.classes} classes")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    prefix, tensors = families.FAMILIES[spec.family].prefix, {}
    for path, leaf in leaves(unstack_layers(params) if spec.stacked else params):
        name = families.tensor_name(spec, path)
        name = name if families.is_outside(name) else prefix + name
        tensors[name] = np.asarray(leaf).T if path.endswith("/kernel") else leaf
    write_tensors(folder / "model.safetensors", tensors)
    config = {
        **families.write_config(spec),
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    write_atomic(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def keep_lowest(spec: AnySpec, params: Params, layers: int) -> tuple[AnySpec, Params]:
    """The stacked encoder without all layers but the lowest ones."""
    alone = sum(name.startswith("layer_") for name in params)
    kept = {"local": spec.local[:layers]} if isinstance(spec, ModernBertSpec) else {}
    cut = jax.tree.map(lambda leaf: leaf[: layers - alone], params.get("layers", {}))
    others = {name: tree for name, tree in params.items() if name != "layers"}
    left = {"layers": cut} if layers > alone else {}
    return replace(spec, layers=layers, **kept), {**others, **left}


def _read_spec(
    folder: Path, classes: int | None, labels: Sequence[str] | None
) -> tuple[AnySpec, dict[str, tuple[int, ...]], tuple[str, ...] | None]:
    """The unstacked encoder in a folder, its leaves' shapes, and its head's labels if they fit."""
    config = read_config(folder / "config.json")
    own = _head_labels(config, classes, labels)
    if classes is None and own is None:
        raise CheckpointError(
            f"{folder} brings no head for tags or classes (its architecture is "
            f"{config.get('architectures')}; expected one ForTokenClassification, or "
            f"{families.POOLED}): fine-tune it"
        )
    try:
        spec = families.read_spec(config, len(own or ()) if classes is None else classes or 0)
        if own is not None and families.POOLED in config["architectures"]:
            spec = replace(spec, pooler=True)
        return spec, dict(leaves(_shapes(spec))), own
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def _shapes(spec: AnySpec) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: leaf.shape, abstract_params(spec))


def _fresh_leaves(
    spec: AnySpec,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, np.ndarray],
    *,
    keep: bool,
) -> set[str]:
    """Leaves of the head to be drawn: its last layer unless kept; others where they are absent."""
    last = set() if keep else set(_LAST)
    inner = [path for path in shapes if path.startswith("head/") and path.count("/") > 1]
    absent = {p for p in inner if families.tensor_name(spec, p) not in tensors}
    return last | (absent if not keep else set())


def _draw(spec: AnySpec, path: str, shape: tuple[int, ...], key: Array) -> np.ndarray:
    name = path.rsplit("/", 1)[1]
    if name in ("bias", "scale"):
        return np.full(shape, float(name == "scale"), np.float32)
    return np.asarray(spec.initializer * jax.random.normal(key, shape))


def _assemble(
    spec: AnySpec,
    path: str,
    shape: tuple[int, ...],
    names: Mapping[str, str],
    tensors: Mapping[str, np.ndarray],
) -> np.ndarray:
    """One leaf in fp32, from one tensor or, where layers are stacked, from one of each layer."""
    turn = path.endswith("/kernel")
    if not path.startswith("layers/"):
        tensor = tensors[names[path]]
        return np.asarray(tensor.T if turn else tensor, np.float32, order="C")
    leaf = np.empty(shape, np.float32)
    for place, number in enumerate(range(spec.layers - shape[0] + 1, spec.layers + 1)):
        tensor = tensors[names[path.replace("layers/", f"layer_{number}/", 1)]]
        leaf[place] = tensor.T if turn else tensor
    return leaf


def plain_name(name: str, prefix: str) -> str:
    """Tensor names as of today and without the prefix: BERT's first files say gamma and beta."""
    name = name.removeprefix(prefix)
    return name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias")


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
    config: Mapping[str, Any], classes: int | None, labels: Sequence[str] | None
) -> tuple[str, ...] | None:
    """Names of the columns of the checkpoint's own head, or None where it doesn't fit."""
    architectures = config.get("architectures") or ()
    # Without names a head of as many columns may be one for anything else.
    whole = families.POOLED in architectures and (classes is None or labels is not None)
    if not whole and not any(
        str(name).endswith("ForTokenClassification") for name in architectures
    ):
        return None
    named = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    own = tuple(named[number] for number in sorted(named, key=int))
    fits = classes in (None, len(own)) and (labels is None or sorted(own) == sorted(labels))
    return own if fits else None
