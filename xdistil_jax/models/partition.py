"""Where an encoder's parameters lie on a mesh (data, model): path rules, as data.

Fully sharded over ``data``: each device keeps a part of every large leaf, and a layer is gathered
when its turn comes. Tensor-parallel over ``model``: heads and feed-forward columns are split.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from jax.sharding import Mesh, PartitionSpec

from xdistil_jax import trees
from xdistil_jax.models.deberta import DebertaSpec
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import Spec, abstract_params
from xdistil_jax.models.modernbert import ModernBertSpec

Axes = tuple[str | tuple[str, ...] | None, ...]
"""Mesh axes of the last axes of a leaf; axes before them (stacked layers) are not split."""

_WHOLE: Axes = ()
_COLUMNS: Axes = ("data", "model")
_ROWS: Axes = ("model", "data")
# Products that are cut into parts behind: the parts wouldn't end where the shards do.
_JOINED: Axes = (("data", "model"), None)

_BLOCK: dict[str, Axes] = {
    "*/attention/query/kernel": _COLUMNS,
    "*/attention/query/bias": ("model",),
    "*/attention/key/kernel": _COLUMNS,
    "*/attention/key/bias": ("model",),
    "*/attention/value/kernel": _COLUMNS,
    "*/attention/value/bias": ("model",),
    "*/attention/output/kernel": _ROWS,
    "*/attention/output/bias": _WHOLE,
    "*/attention/norm": _WHOLE,
    "*/feed_forward/up/kernel": _COLUMNS,
    "*/feed_forward/up/bias": ("model",),
    "*/feed_forward/down/kernel": _ROWS,
    "*/feed_forward/down/bias": _WHOLE,
    "*/feed_forward/norm": _WHOLE,
}
_ENDS: dict[str, Axes] = {
    "embed/table": _ROWS,
    "embed/positions": (None, "data"),
    "embed/types": (None, "data"),
    "embed/norm": _WHOLE,
    "embed/projection/kernel": ("data", None),
    "head/kernel": ("data", None),
    "head/bias": _WHOLE,
}

RULES: dict[type[Any], dict[str, Axes]] = {
    EncoderSpec: {**_ENDS, **_BLOCK, "embed/projection/bias": _WHOLE, "norm": _WHOLE},
    DebertaSpec: {
        **_ENDS,
        **_BLOCK,
        "*/attention/place_key/kernel": _COLUMNS,
        "*/attention/place_key/bias": ("model",),
        "*/attention/place_query/kernel": _COLUMNS,
        "*/attention/place_query/bias": ("model",),
        "relative": _WHOLE,
        "convolution": _WHOLE,
    },
    ModernBertSpec: {
        "embed/table": _ROWS,
        "embed/norm": _WHOLE,
        "*/attention/qkv/kernel": _JOINED,
        "*/attention/qkv/bias": _WHOLE,
        "*/attention/output/kernel": _ROWS,
        "*/attention/output/bias": _WHOLE,
        "*/attention/norm": _WHOLE,
        "*/feed_forward/up/kernel": _JOINED,
        "*/feed_forward/up/bias": _WHOLE,
        "*/feed_forward/down/kernel": _ROWS,
        "*/feed_forward/down/bias": _WHOLE,
        "*/feed_forward/norm": _WHOLE,
        "head": _WHOLE,
        "norm": _WHOLE,
    },
}
"""For each kind of encoder: pattern -> axes. Exactly one pattern covers each parameter."""


def rules(spec: Spec, mesh: Mesh) -> dict[str, PartitionSpec]:
    """path -> where that parameter of ``spec`` lies, for ``sharding.by_rules`` and ``placer``.

    An axis that the mesh doesn't divide (a vocabulary of 119,547) stays whole.

    Raises:
        ValueError: for a model that has no table here: a BiLSTM is whole on every device.
        trees.PatternError: for a parameter that isn't covered by exactly one pattern.
    """
    if type(spec) not in RULES:
        kinds = ", ".join(kind.__name__ for kind in RULES)
        raise ValueError(f"there are no rules to split a {type(spec).__name__}, only {kinds}")
    table = RULES[type(spec)]
    return {
        path: _fitted(table[trees.covering(path, tuple(table))], leaf.shape, mesh.shape)
        for path, leaf in trees.leaves(abstract_params(spec))
    }


def _fitted(axes: Axes, shape: tuple[int, ...], ways: Mapping[str, int]) -> PartitionSpec:
    lead = len(shape) - len(axes)
    split = (
        name if name is None or size % prod(ways[n] for n in _names(name)) == 0 else None
        for name, size in zip(axes, shape[lead:], strict=True)
    )
    return PartitionSpec(*(None,) * lead, *split)


def _names(name: str | tuple[str, ...]) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else name
