"""Encoders with learned positions: BERT and its relatives, as teachers and as students."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from xdistil_jax.models.functional import dropout
from xdistil_jax.models.layers import (
    ACTIVATIONS,
    attention_of,
    dense,
    dense_shapes,
    mix,
    norm_shapes,
    normalize,
    split_heads,
)
from xdistil_jax.models.stack import LayerStack, Ran
from xdistil_jax.types import Params


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes and choices of an encoder; the defaults are BERT's.

    ``stacked`` keeps all layers in one leaf with a leading axis, run by a scan: quick to compile,
    but a stacked leaf can't be partly frozen, so a student that is unfrozen layer by layer wants
    False. ``word_dropout`` hides whole pieces in training, so that the context has to speak for
    them. ``outputs`` names the hidden states that are returned (None: all of them); ``columns`` are
    those of the head that make up each tag (empty: as they are; see ``merge_columns``).

    What tells the families apart: ``position_offset`` is the number of the first position (RoBERTa
    counts from the number of its padding piece + 1), ``token_types`` may be 0 (DistilBERT),
    ``embedding_width`` is that of a table which is projected to ``width`` (ELECTRA; 0: the same),
    and ``pre_norm`` normalises before each block and once at the end (XLM-R XL).

    ``separator`` is the number of [SEP], where rows may hold two texts: what stands behind the
    first one is of the second type, as no text spells a special piece (-1: one type). ``pooler``:
    the head is that of BERT's sequence classifiers, tanh of a dense layer before the last one.
    ``attention`` names the layers whose attention, as probabilities, is returned.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    positions: int = 512
    token_types: int = 2
    classes: int = 7
    dropout: float = 0.1
    word_dropout: float = 0.0
    norm_epsilon: float = 1e-12
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    initializer: float = 0.02
    stacked: bool = True
    outputs: tuple[str, ...] | None = None
    columns: tuple[tuple[int, ...], ...] = ()
    family: str = "bert"
    position_offset: int = 0
    embedding_width: int = 0
    pre_norm: bool = False
    separator: int = -1
    pooler: bool = False
    attention: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is unknown: choose from {', '.join(ACTIVATIONS)}"
            )
        for name in self.outputs or ():
            if name not in self.hidden_names:
                raise ValueError(
                    f"outputs: no hidden state {name!r}; there are {', '.join(self.hidden_names)}"
                )
        if strange := set(self.attention) - set(self.hidden_names[1:]):
            raise ValueError(f"attention: no layer {min(strange)!r}; there are {self.layers}")

    @property
    def longest(self) -> int:
        """Pieces of the longest row."""
        return self.positions - self.position_offset

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """embedding, layer_1 … layer_L: bottom to top."""
        return ("embedding", *(f"layer_{number + 1}" for number in range(self.layers)))

    @property
    def groups(self) -> tuple[str, ...]:
        """Top to bottom; single layers only where they are leaves of their own."""
        middle = ("layers",) if self.stacked else self.hidden_names[:0:-1]
        last = ("norm",) if self.pre_norm else ()
        return ("head", *last, *middle, "embed")

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return Encoder(self, rngs)


def parameter_shapes(spec: EncoderSpec) -> dict[str, Any]:
    """The nested dict of the parameters' shapes."""
    D, F = spec.width, spec.feed_forward

    def layer(lead: tuple[int, ...] = ()) -> dict[str, Any]:
        products = {name: dense_shapes(D, D, lead) for name in ("query", "key", "value", "output")}
        up, down = dense_shapes(D, F, lead), dense_shapes(F, D, lead)
        norm = norm_shapes(D, lead)
        return {
            "attention": {**products, "norm": norm},
            "feed_forward": {"up": up, "down": down, "norm": norm},
        }

    E = spec.embedding_width or D
    embed: dict[str, Any] = {"table": (spec.vocab_size, E), "positions": (spec.positions, E)}
    if spec.token_types:
        embed["types"] = (spec.token_types, E)
    if not spec.pre_norm:
        embed["norm"] = norm_shapes(E)
    if E != D:
        embed["projection"] = dense_shapes(E, D)
    if spec.stacked:
        middle = {"layers": layer((spec.layers,))}
    else:
        middle = {name: layer() for name in spec.hidden_names[1:]}
    last = {"norm": norm_shapes(D)} if spec.pre_norm else {}
    head = {**dense_shapes(D, spec.classes)}
    if spec.pooler:
        head["dense"] = dense_shapes(D, D)
    return {"embed": embed, **middle, **last, "head": head}


class Encoder(LayerStack):
    """The parameters of ``EncoderSpec``; the arithmetic is in the functions below."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs) -> None:
        super().__init__(spec, parameter_shapes(spec), rngs)

    def embed_pieces(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None,
        real: Bool[Array, "B T"],
        dtype: DTypeLike,
        key: Array | None,
    ) -> Float[Array, "B T D"]:
        return embed(self.spec, params, params["table"][tokens], token_types, dtype, key)

    def run_layers(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        real: Bool[Array, "B T"],
        keys: Array | None,
    ) -> Ran:
        return _run_layers(self.spec, params, x, real, keys)

    def classify(
        self, params: Params, top: Float[Array, "B T D"], key: Array | None
    ) -> Float[Array, "B T C"]:
        if self.spec.pooler:
            top = jnp.tanh(dense(params["dense"], top))
        return super().classify(params, top, key)


def embed(
    spec: EncoderSpec,
    params: Params,
    x: Float[Array, "B T E"],
    token_types: Int[Array, "B T"] | None,
    dtype: DTypeLike,
    key: Array | None,
) -> Float[Array, "B T D"]:
    """What goes into the first layer: rows ``x`` of the table, with places, normalised."""
    if key is not None and spec.word_dropout:
        hidden = jax.random.bernoulli(jax.random.fold_in(key, 1), spec.word_dropout, x.shape[:2])
        x = jnp.where(hidden[..., None], 0.0, x)
    first = spec.position_offset
    x = x + params["positions"][None, first : first + x.shape[1]]
    if spec.token_types:
        types = params["types"]
        single = token_types is None or spec.token_types == 1
        x = x + (types[None, :1] if single else types[token_types])
    if not spec.pre_norm:
        x = normalize(params["norm"], x, spec.norm_epsilon)
    x = x.astype(dtype)
    return dense(params["projection"], x) if "projection" in params else x


def _run_layers(
    spec: EncoderSpec,
    params: Params,
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    keys: Array | None,
) -> Ran:
    """Hidden state of every layer; of the last one only, where the scan need keep no others."""
    names = spec.hidden_names[1:]
    inner = None if keys is None else keys[1:-1]
    if not spec.stacked:
        hidden, weights = {}, {}
        for number, name in enumerate(names):
            key = None if inner is None else inner[number]
            x, weights[name] = _layer(spec, params[name], x, real, key)
            hidden[name] = x
        return {**hidden, names[-1]: _finish(spec, params, x)}, weights
    every = spec.outputs is None or not {*spec.outputs} <= {"embedding", names[-1]}

    def step(x: Array, layer: tuple[Params, Array | None]) -> tuple[Array, tuple]:
        y, weights = _layer(spec, layer[0], x, real, layer[1])
        return y, (y if every else None, weights if spec.attention else None)

    x, (states, attended) = jax.lax.scan(step, x, (params["layers"], inner))
    hidden = {} if states is None else dict(zip(names, states, strict=True))
    weights = {} if attended is None else dict(zip(names, attended, strict=True))
    return {**hidden, names[-1]: _finish(spec, params, x)}, weights


def _finish(spec: EncoderSpec, params: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    return normalize(params["norm"], x, spec.norm_epsilon) if spec.pre_norm else x


def _layer(
    spec: EncoderSpec,
    params: Params,
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    key: Array | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B H T T"]]:
    keys: Sequence[Array | None] = (None,) * 3 if key is None else jax.random.split(key, 3)

    def attention(p: Params, x: Array) -> tuple[Array, Array]:
        return _attend(spec, p, x, real, keys[0])

    def feed_forward(p: Params, x: Array) -> tuple[Array, None]:
        return dense(p["down"], ACTIVATIONS[spec.activation](dense(p["up"], x))), None

    blocks = ((attention, params["attention"]), (feed_forward, params["feed_forward"]))
    found = []
    for (block, p), dropped in zip(blocks, keys[1:], strict=True):
        if spec.pre_norm:
            y, weights = block(p, normalize(p["norm"], x, spec.norm_epsilon))
            x = x + dropout(y, spec.dropout, dropped)
        else:
            y, weights = block(p, x)
            x = normalize(p["norm"], x + dropout(y, spec.dropout, dropped), spec.norm_epsilon)
        found.append(weights)
    return x, found[0]


def _attend(
    spec: EncoderSpec,
    params: Params,
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    key: Array | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B H T T"]]:
    """Self-attention over the real pieces of each row, and its probabilities before dropout.

    Three products were never slower than one with joined kernels.
    """
    query, keys, values = (
        split_heads(dense(params[name], x), spec.heads) for name in ("query", "key", "value")
    )
    scale = (spec.width // spec.heads) ** -0.5
    allowed = real[:, None, None]
    weights = attention_of(query, keys, allowed, scale=scale)
    return dense(params["output"], mix(weights, values, spec.dropout, key)), weights
