"""config.json of each family <-> what is special about its spec: readers and writers, in pairs."""

from collections.abc import Mapping
from typing import Any

from xdistil_jax.models.deberta import DebertaSpec
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.modernbert import ModernBertSpec

Config = Mapping[str, Any]
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_OURS_TO_THEIRS = {ours: theirs for theirs, ours in reversed(ACTIVATION_NAMES.items())}


class FieldError(ValueError):
    """A field of config.json that is missing, of another type, or beyond what is supported."""


def activation(config: Config, field: str) -> str:
    """Our name of the activation in ``field``.

    Raises:
        FieldError: for one that isn't supported.
    """
    given = config.get(field, "gelu")
    if given not in ACTIVATION_NAMES:
        raise FieldError(f"{field} {given!r} is not supported, only {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[given]


def read_bert(config: Config) -> dict[str, Any]:
    return {"activation": activation(config, "hidden_act")}


def write_bert(spec: EncoderSpec) -> dict[str, Any]:
    return {
        "hidden_act": _OURS_TO_THEIRS[spec.activation],
        "attention_probs_dropout_prob": spec.dropout,
        "position_embedding_type": "absolute",
    }


def read_roberta(config: Config) -> dict[str, Any]:
    return {**read_bert(config), "position_offset": int(config.get("pad_token_id", 1)) + 1}


def write_roberta(spec: EncoderSpec) -> dict[str, Any]:
    return {**write_bert(spec), "pad_token_id": spec.position_offset - 1}


def read_electra(config: Config) -> dict[str, Any]:
    own = int(config.get("embedding_size", 128))
    return {**read_bert(config), "embedding_width": 0 if own == config["hidden_size"] else own}


def write_electra(spec: EncoderSpec) -> dict[str, Any]:
    return {**write_bert(spec), "embedding_size": spec.embedding_width or spec.width}


def read_distilbert(config: Config) -> dict[str, Any]:
    return {"activation": activation(config, "activation"), "token_types": 0}


def write_distilbert(spec: EncoderSpec) -> dict[str, Any]:
    own = {"activation": _OURS_TO_THEIRS[spec.activation], "attention_dropout": spec.dropout}
    return {**own, "sinusoidal_pos_embds": False}


def read_deberta(config: Config) -> dict[str, Any]:
    kinds = config.get("pos_att_type") or ()
    kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    farthest = int(config.get("max_relative_positions", -1))
    own = int(config.get("embedding_size", config["hidden_size"]))
    return {
        "activation": activation(config, "hidden_act"),
        "embedding_width": 0 if own == config["hidden_size"] else own,
        "positions_added": bool(config.get("position_biased_input", True)),
        "relative": bool(config.get("relative_attention", False)),
        "buckets": max(0, int(config.get("position_buckets", -1))),
        "farthest": farthest if farthest > 0 else int(config["max_position_embeddings"]),
        "kinds": tuple(str(kind).strip() for kind in kinds),
        "shared": bool(config.get("share_att_key", False)),
        "normalized_places": "layer_norm" in str(config.get("norm_rel_ebd", "none")).lower(),
        "convolution": int(config.get("conv_kernel_size", 0) or 0),
        "convolution_groups": int(config.get("conv_groups", 1)),
        "convolution_activation": activation({"conv_act": "tanh", **config}, "conv_act"),
    }


def write_deberta(spec: DebertaSpec) -> dict[str, Any]:
    return {
        "hidden_act": _OURS_TO_THEIRS[spec.activation],
        "attention_probs_dropout_prob": spec.dropout,
        "embedding_size": spec.embedding_width or spec.width,
        "position_biased_input": spec.positions_added,
        "relative_attention": spec.relative,
        "position_buckets": spec.buckets or -1,
        "max_relative_positions": spec.farthest,
        "pos_att_type": list(spec.kinds),
        "share_att_key": spec.shared,
        "norm_rel_ebd": "layer_norm" if spec.normalized_places else "none",
        "conv_kernel_size": spec.convolution,
        "conv_groups": spec.convolution_groups,
        "conv_act": _OURS_TO_THEIRS[spec.convolution_activation],
    }


def read_modernbert(config: Config) -> dict[str, Any]:
    layers = int(config["num_hidden_layers"])
    every = int(config.get("global_attn_every_n_layers", 3))
    kinds = config.get("layer_types") or [
        "sliding_attention" if number % every else "full_attention" for number in range(layers)
    ]
    rotary = config.get("rope_parameters") or {}
    thetas = []
    for kind, field, usual in (
        ("full_attention", "global_rope_theta", 160_000.0),
        ("sliding_attention", "local_rope_theta", 10_000.0),
    ):
        own = rotary.get(kind) or {}
        if own.get("rope_type", "default") != "default" or config.get("rope_scaling"):
            raise FieldError(f"rope_parameters {kind}: only rope_type 'default' is supported")
        given = own.get("rope_theta", config.get(field))
        thetas.append(float(usual if given is None else given))
    return {
        "activation": activation(config, "hidden_activation"),
        "head_activation": activation(config, "classifier_activation"),
        "local": tuple(kind == "sliding_attention" for kind in kinds),
        "window": int(config.get("local_attention", 128)) // 2,
        "theta_global": thetas[0],
        "theta_local": thetas[1],
        "norm_bias": bool(config.get("norm_bias", False)),
        "attention_bias": bool(config.get("attention_bias", False)),
        "feed_forward_bias": bool(config.get("mlp_bias", False)),
        "head_bias": bool(config.get("classifier_bias", False)),
    }


def write_modernbert(spec: ModernBertSpec) -> dict[str, Any]:
    kinds = {True: "sliding_attention", False: "full_attention"}
    thetas = {"full_attention": spec.theta_global, "sliding_attention": spec.theta_local}
    dropouts = ("attention_dropout", "mlp_dropout", "classifier_dropout")
    return {
        "hidden_activation": _OURS_TO_THEIRS[spec.activation],
        "classifier_activation": _OURS_TO_THEIRS[spec.head_activation],
        "layer_types": [kinds[local] for local in spec.local],
        "local_attention": 2 * spec.window,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()
        },
        "norm_bias": spec.norm_bias,
        "attention_bias": spec.attention_bias,
        "mlp_bias": spec.feed_forward_bias,
        "classifier_bias": spec.head_bias,
        **dict.fromkeys(dropouts, spec.dropout),
        **dict.fromkeys(f"{kind}_token_id" for kind in ("pad", "bos", "eos", "cls", "sep")),
    }
