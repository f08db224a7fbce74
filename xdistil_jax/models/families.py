"""Families of checkpoints: how Hugging Face's config.json and tensor names spell our encoders.

One entry a family, both ways: config -> spec, spec -> config, and our paths -> their names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from xdistil_jax.models import configs
from xdistil_jax.models.deberta import DebertaSpec
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.modernbert import ModernBertSpec

AnySpec = EncoderSpec | DebertaSpec | ModernBertSpec


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
    read: Callable[[configs.Config], dict[str, Any]] = lambda config: {}
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


_ABSOLUTE = {"position_embedding_type": "absolute", "is_decoder": False}
_BERT = Family(
    EncoderSpec, "BertForTokenClassification", "bert.", _BERT_FIELDS, _BERT_NAMES,
    configs.read_bert, configs.write_bert, _ABSOLUTE,
)  # fmt: skip
POOLED = "BertForSequenceClassification"
"""The one architecture of classifiers of whole texts whose head is read as it is."""
_ROBERTA = replace(
    _BERT, architecture="RobertaForTokenClassification", prefix="roberta.",
    read=configs.read_roberta, write=configs.write_roberta,
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "bert": replace(_BERT, names={**_BERT_NAMES, "head/dense": "pooler.dense"}),
    "roberta": _ROBERTA,
    "xlm-roberta": replace(_ROBERTA, architecture="XLMRobertaForTokenClassification"),
    "xlm-roberta-xl": replace(
        _ROBERTA,
        architecture="XLMRobertaXLForTokenClassification",
        read=lambda config: {**configs.read_roberta(config), "pre_norm": True},
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
        read=configs.read_electra,
        write=configs.write_electra,
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
        configs.read_distilbert,
        configs.write_distilbert,
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
        configs.read_deberta,
        configs.write_deberta,
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
        configs.read_modernbert,
        configs.write_modernbert,
    ),
}


def read_spec(config: configs.Config, classes: int) -> AnySpec:
    """The encoder that config.json describes, unstacked.

    Raises:
        FieldError: naming the family or the field, and what was expected.
    """
    name = config.get("model_type")
    if name not in FAMILIES:
        raise configs.FieldError(
            f"model_type {name!r} is not supported: there are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[name]
    for field, wanted in (family.fixed or {}).items():
        if config.get(field, wanted) != wanted:
            raise configs.FieldError(f"{field} {config[field]!r}: only {wanted!r} is supported")
    known: dict[str, Any] = {}
    for field, ours in family.fields.items():
        if field not in config and field not in OPTIONAL:
            raise configs.FieldError(f"field {field!r} is missing")
        value = config.get(field, OPTIONAL.get(field))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise configs.FieldError(f"{field} is {value!r}: expected a number")
        known[ours] = value
    try:
        own = {**known, **family.read(config), "family": name, "classes": classes}
        return family.kind(**own, stacked=False)
    except (TypeError, AttributeError) as error:
        raise configs.FieldError(f"a field has another type than expected ({error})") from error


def write_config(spec: AnySpec) -> dict[str, Any]:
    """The config.json of ``spec``, without its labels."""
    family = FAMILIES[spec.family]
    copied = {theirs: getattr(spec, ours) for theirs, ours in family.fields.items()}
    architecture = POOLED if getattr(spec, "pooler", False) else family.architecture
    own = {"architectures": [architecture], "model_type": spec.family}
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
