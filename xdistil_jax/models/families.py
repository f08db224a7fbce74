"""Families of checkpoints: how Hugging Face's config.json and tensor names spell our encoders.

One entry a family, both ways: config -> spec, spec -> config, and our paths -> their names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from xdistil_jax.models.deberta import DebertaSpec
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.modernbert import ModernBertSpec

AnySpec = EncoderSpec | DebertaSpec | ModernBertSpec
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


@dataclass(frozen=True)
class Family:
    """``names`` maps our blocks (``layer`` for any layer, ``{}`` for its number) to theirs.

    ``fields`` are (theirs, ours) for what is copied as it is; ``read`` and ``write`` add the rest.
    ``fixed`` are settings of which only one value is supported.
    """

    kind: type[Any]
    architecture: str
    prefix: str
    fields: Mapping[str, str]
    names: Mapping[str, str]
    read: Callable[[Config], dict[str, Any]] = lambda config: {}
    write: Callable[[Any], dict[str, Any]] = lambda spec: {}
    fixed: Mapping[str, Any] | None = None


_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "max_position_embeddings": "positions",
    "initializer_range": "initializer",
}
_BERT_FIELDS = {
    **_SIZES,
    "type_vocab_size": "token_types",
    "hidden_dropout_prob": "dropout",
    "layer_norm_eps": "norm_epsilon",
}
# Fields that a config.json may leave out: the spec then has Hugging Face's default as well.
OPTIONAL = {
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "dropout": 0.1,
    "norm_eps": 1e-5,
    "embedding_dropout": 0.0,
}
_BLOCK = {
    "attention/output": "attention.output.dense",
    "attention/norm": "attention.output.LayerNorm",
    "feed_forward/up": "intermediate.dense",
    "feed_forward/down": "output.dense",
    "feed_forward/norm": "output.LayerNorm",
}
_EMBED = {
    "embed/table": "embeddings.word_embeddings",
    "embed/positions": "embeddings.position_embeddings",
    "embed/types": "embeddings.token_type_embeddings",
    "embed/norm": "embeddings.LayerNorm",
}


def _named(where: str, block: Mapping[str, str], **others: str) -> dict[str, str]:
    layer = {f"layer/{ours}": f"{where}.{{}}.{theirs}" for ours, theirs in block.items()}
    return {"head": "classifier", **layer, **{o.replace("__", "/"): t for o, t in others.items()}}


_SELF = {f"attention/{name}": f"attention.self.{name}" for name in ("query", "key", "value")}
_BERT_NAMES = {**_named("encoder.layer", {**_SELF, **_BLOCK}), **_EMBED}


def activation(config: Config, field: str) -> str:
    """Our name of the activation in ``field``.

    Raises:
        FieldError: for one that isn't supported.
    """
    given = config.get(field, "gelu")
    if given not in ACTIVATION_NAMES:
        raise FieldError(f"{field} {given!r} is not supported, only {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[given]


def _read_bert(config: Config) -> dict[str, Any]:
    return {"activation": activation(config, "hidden_act")}


def _write_bert(spec: EncoderSpec) -> dict[str, Any]:
    return {
        "hidden_act": _OURS_TO_THEIRS[spec.activation],
        "attention_probs_dropout_prob": spec.dropout,
        "position_embedding_type": "absolute",
    }


def _read_roberta(config: Config) -> dict[str, Any]:
    return {**_read_bert(config), "position_offset": int(config.get("pad_token_id", 1)) + 1}


def _write_roberta(spec: EncoderSpec) -> dict[str, Any]:
    return {**_write_bert(spec), "pad_token_id": spec.position_offset - 1}


def _read_electra(config: Config) -> dict[str, Any]:
    own = int(config.get("embedding_size", 128))
    return {**_read_bert(config), "embedding_width": 0 if own == config["hidden_size"] else own}


def _write_electra(spec: EncoderSpec) -> dict[str, Any]:
    return {**_write_bert(spec), "embedding_size": spec.embedding_width or spec.width}


def _read_distilbert(config: Config) -> dict[str, Any]:
    return {"activation": activation(config, "activation"), "token_types": 0}


def _write_distilbert(spec: EncoderSpec) -> dict[str, Any]:
    own = {"activation": _OURS_TO_THEIRS[spec.activation], "attention_dropout": spec.dropout}
    return {**own, "sinusoidal_pos_embds": False}


def _read_deberta(config: Config) -> dict[str, Any]:
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


def _write_deberta(spec: DebertaSpec) -> dict[str, Any]:
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


def _read_modernbert(config: Config) -> dict[str, Any]:
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


def _write_modernbert(spec: ModernBertSpec) -> dict[str, Any]:
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


_ABSOLUTE = {"position_embedding_type": "absolute", "is_decoder": False}
_BERT = Family(
    EncoderSpec, "BertForTokenClassification", "bert.", _BERT_FIELDS, _BERT_NAMES, _read_bert,
    _write_bert, _ABSOLUTE,
)  # fmt: skip
_ROBERTA = replace(
    _BERT, architecture="RobertaForTokenClassification", prefix="roberta.", read=_read_roberta,
    write=_write_roberta,
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": replace(_ROBERTA, architecture="XLMRobertaForTokenClassification"),
    "xlm-roberta-xl": replace(
        _ROBERTA,
        architecture="XLMRobertaXLForTokenClassification",
        read=lambda config: {**_read_roberta(config), "pre_norm": True},
        names={
            **{ours: theirs for ours, theirs in _BERT_NAMES.items() if ours != "embed/norm"},
            "layer/attention/norm": "encoder.layer.{}.attention.self_attn_layer_norm",
            "layer/feed_forward/norm": "encoder.layer.{}.LayerNorm",
            "norm": "encoder.LayerNorm",
        },
    ),
    "electra": replace(
        _BERT,
        architecture="ElectraForTokenClassification",
        prefix="electra.",
        read=_read_electra,
        write=_write_electra,
        names={**_BERT_NAMES, "embed/projection": "embeddings_project"},
    ),
    "distilbert": Family(
        EncoderSpec,
        "DistilBertForTokenClassification",
        "distilbert.",
        {
            "vocab_size": "vocab_size",
            "dim": "width",
            "n_layers": "layers",
            "n_heads": "heads",
            "hidden_dim": "feed_forward",
            "max_position_embeddings": "positions",
            "dropout": "dropout",
            "initializer_range": "initializer",
        },
        {
            **_named(
                "transformer.layer",
                {
                    "attention/query": "attention.q_lin",
                    "attention/key": "attention.k_lin",
                    "attention/value": "attention.v_lin",
                    "attention/output": "attention.out_lin",
                    "attention/norm": "sa_layer_norm",
                    "feed_forward/up": "ffn.lin1",
                    "feed_forward/down": "ffn.lin2",
                    "feed_forward/norm": "output_layer_norm",
                },
            ),
            **{ours: theirs for ours, theirs in _EMBED.items() if ours != "embed/types"},
        },
        _read_distilbert,
        _write_distilbert,
    ),
    "deberta-v2": Family(
        DebertaSpec,
        "DebertaV2ForTokenClassification",
        "deberta.",
        _BERT_FIELDS,
        {
            **_named(
                "encoder.layer",
                {
                    "attention/query": "attention.self.query_proj",
                    "attention/key": "attention.self.key_proj",
                    "attention/value": "attention.self.value_proj",
                    "attention/place_key": "attention.self.pos_key_proj",
                    "attention/place_query": "attention.self.pos_query_proj",
                    **_BLOCK,
                },
                relative__table="encoder.rel_embeddings",
                relative__norm="encoder.LayerNorm",
                convolution="encoder.conv.conv",
                convolution__norm="encoder.conv.LayerNorm",
                embed__projection="embeddings.embed_proj",
            ),
            **_EMBED,
        },
        _read_deberta,
        _write_deberta,
    ),
    "modernbert": Family(
        ModernBertSpec,
        "ModernBertForTokenClassification",
        "model.",
        {
            **_SIZES,
            "embedding_dropout": "dropout",
            "norm_eps": "norm_epsilon",
        },
        _named(
            "layers",
            {
                "attention/qkv": "attn.Wqkv",
                "attention/output": "attn.Wo",
                "attention/norm": "attn_norm",
                "feed_forward/up": "mlp.Wi",
                "feed_forward/down": "mlp.Wo",
                "feed_forward/norm": "mlp_norm",
            },
            embed__table="embeddings.tok_embeddings",
            embed__norm="embeddings.norm",
            norm="final_norm",
            head__dense="head.dense",
            head__norm="head.norm",
        ),
        _read_modernbert,
        _write_modernbert,
    ),
}


def read_spec(config: Config, classes: int) -> AnySpec:
    """The encoder that config.json describes, unstacked.

    Raises:
        FieldError: naming the family or the field, and what was expected.
    """
    name = config.get("model_type")
    if name not in FAMILIES:
        raise FieldError(f"model_type {name!r} is not supported: there are {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    for field, wanted in (family.fixed or {}).items():
        if config.get(field, wanted) != wanted:
            raise FieldError(f"{field} {config[field]!r}: only {wanted!r} is supported")
    known: dict[str, Any] = {}
    for field, ours in family.fields.items():
        if field not in config and field not in OPTIONAL:
            raise FieldError(f"field {field!r} is missing")
        value = config.get(field, OPTIONAL.get(field))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FieldError(f"{field} is {value!r}: expected a number")
        known[ours] = value
    try:
        own = {**known, **family.read(config), "family": name, "classes": classes}
        return family.kind(**own, stacked=False)
    except (TypeError, AttributeError) as error:
        raise FieldError(f"a field has another type than expected ({error})") from error


def write_config(spec: AnySpec) -> dict[str, Any]:
    """The config.json of ``spec``, without its labels."""
    family = FAMILIES[spec.family]
    copied = {theirs: getattr(spec, ours) for theirs, ours in family.fields.items()}
    own = {"architectures": [family.architecture], "model_type": spec.family}
    return {**own, **copied, **family.write(spec)}


def tensor_name(spec: AnySpec, path: str) -> str:
    """``layer_1/attention/query/kernel`` -> ``encoder.layer.0.attention.self.query.weight``."""
    names = FAMILIES[spec.family].names
    top, _, below = path.partition("/")
    number = top.removeprefix("layer_")
    if number != top:
        path = f"layer/{below}"
    block, leaf = (path, "") if path in names else path.rsplit("/", 1)
    suffix = "bias" if leaf == "bias" else "weight"
    layer = int(number) - 1 if number != top else 0
    return f"{names[block].format(layer)}.{suffix}"


def is_outside(name: str) -> bool:
    """Does a tensor belong to the head, and so bear no prefix of its family?"""
    return name.startswith(("classifier.", "head."))
