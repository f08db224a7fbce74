"""Masked language models: an encoder, and a head that guesses hidden pieces by its own table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array, DTypeLike, Float, Int

from xdistil_jax.files import write_atomic
from xdistil_jax.models import checkpoints, families, hub
from xdistil_jax.models.encoder import Encoder, EncoderSpec, parameter_shapes
from xdistil_jax.models.functional import build
from xdistil_jax.models.layers import (
    ACTIVATIONS,
    dense,
    dense_shapes,
    norm_shapes,
    normalize,
    unstack_layers,
)
from xdistil_jax.models.tensors import CheckpointError, read_folder, write_tensors
from xdistil_jax.trees import leaves
from xdistil_jax.types import EncoderOutput, Params

_BERT = {
    "dense": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
    "bias": "cls.predictions.bias",
}
_ROBERTA = {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"}
_DISTILBERT = {
    "dense": "vocab_transform",
    "norm": "vocab_layer_norm",
    "bias": "vocab_projector.bias",
}
HEADS: dict[str, tuple[str, Mapping[str, str]]] = {
    "bert": ("BertForMaskedLM", _BERT),
    "roberta": ("RobertaForMaskedLM", _ROBERTA),
    "xlm-roberta": ("XLMRobertaForMaskedLM", _ROBERTA),
    "distilbert": ("DistilBertForMaskedLM", _DISTILBERT),
}
"""Of each family that can be pretrained: its class in transformers, and its head's tensors."""


@dataclass(frozen=True)
class MaskedLMSpec(EncoderSpec):
    """An encoder whose head is BERT's for masked pieces: dense, activation, layer norm, table.

    The logits over the vocabulary are the products with the embedding table, which is tied, and a
    bias. They are made at the asked places only.
    """

    @classmethod
    def of(cls, encoder: EncoderSpec) -> "MaskedLMSpec":
        """The masked language model around an encoder.

        Raises:
            ValueError: for an encoder of a family that has another head.
        """
        if encoder.family not in HEADS or encoder.embedding_width:
            raise ValueError(
                f"a {encoder.family} can't be pretrained on masked pieces, only one of "
                f"{', '.join(HEADS)}"
            )
        own = {field.name: getattr(encoder, field.name) for field in fields(EncoderSpec)}
        return cls(**{**own, "outputs": encoder.hidden_names[-1:], "columns": ()})

    def encoder(self, classes: int) -> EncoderSpec:
        """The encoder alone, with a head for so many tags."""
        own = {field.name: getattr(self, field.name) for field in fields(EncoderSpec)}
        return EncoderSpec(**{**own, "outputs": None, "classes": classes})

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return MaskedLM(self, rngs)


def head_shapes(spec: EncoderSpec) -> dict[str, Any]:
    """The nested dict of the shapes of the head's parameters."""
    D = spec.width
    return {"dense": dense_shapes(D, D), "norm": norm_shapes(D), "bias": (spec.vocab_size,)}


class MaskedLM(Encoder):
    """The parameters of ``MaskedLMSpec``."""

    def __init__(self, spec: MaskedLMSpec, rngs: nnx.Rngs) -> None:
        # Not the encoder's own: the head is another.
        super(Encoder, self).__init__(
            spec, {**parameter_shapes(spec), "head": head_shapes(spec)}, rngs
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        token_types: Int[Array, "B T"] | None = None,
        *,
        places: Int[Array, "B M"],
        key: Array | None = None,
        dtype: DTypeLike = jnp.float32,
        rows: Sharding | None = None,
    ) -> EncoderOutput:
        """``logits`` are [B M V]: those of the pieces at ``places``."""
        last = self.spec.hidden_names[-1]
        output = super().__call__(tokens, lengths, token_types, key=key, dtype=dtype, rows=rows)
        params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        x = jnp.take_along_axis(output.hidden[last].astype(dtype), places[..., None], axis=1)
        return EncoderOutput({}, self.guess(params["head"], params["embed"]["table"], x))

    def guess(
        self, params: Params, table: Float[Array, "V D"], x: Float[Array, "B M D"]
    ) -> Float[Array, "B M V"]:
        """Logits in fp32; the products are in the dtype of ``x``."""
        x = ACTIVATIONS[self.spec.activation](dense(params["dense"], x))
        x = normalize(params["norm"], x, self.spec.norm_epsilon)
        product = jnp.matmul(x, table.T.astype(x.dtype), preferred_element_type=jnp.float32)
        return product + params["bias"][None, None]

    def classify(
        self, params: Params, top: Float[Array, "B T D"], key: Array | None
    ) -> Float[Array, "B T D"]:
        """Nothing is said of the pieces that nobody asks for."""
        return top


def load_masked_lm(
    name_or_folder: str | Path, *, key: Array, revision: str | None = None
) -> tuple[MaskedLMSpec, Params]:
    """An encoder's checkpoint, with its head for masked pieces or, where it has none, a fresh one.

    Raises:
        CheckpointError: naming the file, and what is wrong with it.
        ValueError: for a family that has another head.
    """
    folder = hub.find_folder(name_or_folder, revision)
    encoder, params, _ = checkpoints.load_encoder(folder, 1, key=key)
    spec = MaskedLMSpec.of(encoder)
    params["head"] = jax.tree.map(np.asarray, build(spec).init(key)["head"])
    tensors = {checkpoints.plain_name(n, ""): leaf for n, leaf in read_folder(folder).items()}
    wanted = dict(_named(spec, params["head"]))
    if there := wanted.keys() & tensors.keys():
        if absent := wanted.keys() - there:
            raise CheckpointError(
                f"{folder}: its head for masked pieces lacks {', '.join(sorted(absent))}"
            )
        found = {path: tensors[name] for name, path in wanted.items()}
        params["head"] = {
            "dense": {"kernel": _own(found["dense/kernel"].T), "bias": _own(found["dense/bias"])},
            "norm": {name: _own(found[f"norm/{name}"]) for name in ("scale", "bias")},
            "bias": _own(found["bias"]),
        }
    return spec, params


def _own(leaf: np.ndarray) -> np.ndarray:
    return np.array(leaf, np.float32, order="C")


def _named(spec: EncoderSpec, head: Params) -> list[tuple[str, str]]:
    """(their name, our path in the head) of each of its leaves."""
    names = HEADS[spec.family][1]
    found = []
    for path, _ in leaves(head):
        block, _, leaf = path.partition("/")
        suffix = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}.get(leaf, "")
        found.append((f"{names[block]}{suffix}", path))
    return found


def save_masked_lm(folder: str | Path, spec: MaskedLMSpec, params: Params) -> None:
    """Write a folder that ``AutoModelForMaskedLM.from_pretrained`` and ``load_encoder`` can read.

    Each file appears whole; config.json, without which nothing loads the folder, comes last.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    body = {name: tree for name, tree in params.items() if name != "head"}
    prefix, tensors = families.FAMILIES[spec.family].prefix, {}
    for path, leaf in leaves(unstack_layers(body) if spec.stacked else body):
        name = prefix + families.tensor_name(spec, path)
        tensors[name] = np.asarray(leaf).T if path.endswith("/kernel") else leaf
    head = dict(leaves(params["head"]))
    for name, path in _named(spec, params["head"]):
        tensors[name] = np.asarray(head[path]).T if path.endswith("/kernel") else head[path]
    write_tensors(folder / "model.safetensors", tensors)
    config = {**families.write_config(spec), "architectures": [HEADS[spec.family][0]]}
    config = {**config, "tie_word_embeddings": True}
    write_atomic(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
