"""The BERT family: post-norm encoders with learned positions, as teachers and as students."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from xdistil_jax.models.functional import dropout
from xdistil_jax.types import EncoderOutput, Params

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
# A finite stand-in for -inf: a row of length 0 then gets a uniform softmax instead of NaN.
_MASKED = -1e30


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes and choices of an encoder; the defaults are BERT's.

    ``stacked`` keeps all layers in one leaf with a leading axis, run by a scan: quick to compile,
    but a stacked leaf can't be partly frozen, so a student that is unfrozen layer by layer wants
    False. ``word_dropout`` hides whole pieces in training, so that the context has to speak for
    them. ``outputs`` names the hidden states that are returned (None: all of them).
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

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """embedding, layer_1 … layer_L: bottom to top."""
        return ("embedding", *(f"layer_{number + 1}" for number in range(self.layers)))

    @property
    def groups(self) -> tuple[str, ...]:
        """Top to bottom; single layers only where they are leaves of their own."""
        middle = ("layers",) if self.stacked else self.hidden_names[:0:-1]
        return ("head", *middle, "embed")

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return Encoder(self, rngs)


def parameter_shapes(spec: EncoderSpec) -> dict[str, Any]:
    """The nested dict of the parameters' shapes."""
    D, F = spec.width, spec.feed_forward

    def dense(inputs: int, outputs: int, lead: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
        return {"kernel": (*lead, inputs, outputs), "bias": (*lead, outputs)}

    def norm(lead: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
        return {"scale": (*lead, D), "bias": (*lead, D)}

    def layer(lead: tuple[int, ...] = ()) -> dict[str, Any]:
        products = {name: dense(D, D, lead) for name in ("query", "key", "value", "output")}
        up, down = dense(D, F, lead), dense(F, D, lead)
        return {
            "attention": {**products, "norm": norm(lead)},
            "feed_forward": {"up": up, "down": down, "norm": norm(lead)},
        }

    embed = {
        "table": (spec.vocab_size, D),
        "positions": (spec.positions, D),
        "types": (spec.token_types, D),
        "norm": norm(),
    }
    if spec.stacked:
        middle = {"layers": layer((spec.layers,))}
    else:
        middle = {name: layer() for name in spec.hidden_names[1:]}
    return {"embed": embed, **middle, "head": dense(D, spec.classes)}


def stack_layers(params: Mapping[str, Any]) -> Params:
    """Parameters of an unstacked encoder -> those of the stacked one, on the host."""
    count = sum(name.startswith("layer_") for name in params)
    layers = [params[f"layer_{number + 1}"] for number in range(count)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    return {"embed": params["embed"], "layers": stacked, "head": params["head"]}


def unstack_layers(params: Mapping[str, Any]) -> Params:
    """Parameters of a stacked encoder -> those of the unstacked one."""
    count = len(params["layers"]["attention"]["query"]["bias"])
    layers = {
        f"layer_{number + 1}": jax.tree.map(lambda leaf, n=number: leaf[n], params["layers"])
        for number in range(count)
    }
    return {"embed": params["embed"], **layers, "head": params["head"]}


class Encoder(nnx.Module):
    """The parameters of ``EncoderSpec``; the arithmetic is in the functions below."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs) -> None:
        self.spec = spec
        for name, shapes in parameter_shapes(spec).items():
            setattr(self, name, _initialize(shapes, spec.initializer, rngs))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        token_types: Int[Array, "B T"] | None = None,
        *,
        key: Array | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> EncoderOutput:
        spec, T = self.spec, tokens.shape[1]
        if spec.positions < T:
            raise ValueError(f"rows of {T} pieces: the encoder has {spec.positions} positions")
        params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        keys = None if key is None else jax.random.split(key, spec.layers + 2)
        first, last = (None, None) if keys is None else (keys[0], keys[-1])
        real = jnp.arange(T)[None] < lengths[:, None]
        x = _embed(spec, params["embed"], tokens, token_types, dtype, first)
        x = dropout(x, spec.dropout, first)
        hidden = {"embedding": x, **_run_layers(spec, params, x, real, keys)}
        top = hidden[spec.hidden_names[-1]].astype(jnp.float32)
        logits = _dense(params["head"], dropout(top, spec.dropout, last))
        wanted = spec.hidden_names if spec.outputs is None else spec.outputs
        return EncoderOutput({name: hidden[name].astype(jnp.float32) for name in wanted}, logits)


def _initialize(shapes: Mapping[str, Any], scale: float, rngs: nnx.Rngs) -> nnx.Dict:
    def leaf(name: str, shape: tuple[int, ...]) -> Array:
        if name in ("bias", "scale"):
            return jnp.full(shape, float(name == "scale"))
        if name == "positions":
            return scale * _sinusoids(*shape)
        return scale * jax.random.normal(rngs.params(), shape)

    return nnx.Dict(
        **{
            name: _initialize(below, scale, rngs)
            if isinstance(below, Mapping)
            else nnx.Param(leaf(name, below))
            for name, below in shapes.items()
        }
    )


def _sinusoids(count: int, width: int) -> Float[Array, "P D"]:
    """Neighbours start alike, so that attention finds them long before it has seen every place."""
    slower = 100.0 ** (jnp.arange(-(-width // 2)) / (width / 2))
    angles = jnp.arange(count)[:, None] / slower[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :width]


def _embed(
    spec: EncoderSpec,
    params: Params,
    tokens: Int[Array, "B T"],
    token_types: Int[Array, "B T"] | None,
    dtype: DTypeLike,
    key: Array | None,
) -> Float[Array, "B T D"]:
    x = params["table"][tokens]
    if key is not None and spec.word_dropout:
        hidden = jax.random.bernoulli(jax.random.fold_in(key, 1), spec.word_dropout, tokens.shape)
        x = jnp.where(hidden[..., None], 0.0, x)
    x = x + params["positions"][None, : tokens.shape[1]]
    types = params["types"]
    x = x + (types[None, :1] if token_types is None else types[token_types])
    return _normalize(spec, params["norm"], x).astype(dtype)


def _run_layers(
    spec: EncoderSpec,
    params: Params,
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    keys: Array | None,
) -> dict[str, Float[Array, "B T D"]]:
    """Hidden state of every layer; of the last one only, where the scan need keep no others."""
    names = spec.hidden_names[1:]
    inner = None if keys is None else keys[1:-1]
    if not spec.stacked:
        hidden = {}
        for number, name in enumerate(names):
            key = None if inner is None else inner[number]
            x = hidden[name] = _layer(spec, params[name], x, real, key)
        return hidden
    every = spec.outputs is None or not {*spec.outputs} <= {"embedding", names[-1]}

    def step(x: Array, layer: tuple[Params, Array | None]) -> tuple[Array, Array | None]:
        y = _layer(spec, layer[0], x, real, layer[1])
        return y, (y if every else None)

    x, states = jax.lax.scan(step, x, (params["layers"], inner))
    return {names[-1]: x} if states is None else dict(zip(names, states, strict=True))


def _layer(
    spec: EncoderSpec,
    params: Params,
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    key: Array | None,
) -> Float[Array, "B T D"]:
    keys: Sequence[Array | None] = (None,) * 3 if key is None else jax.random.split(key, 3)
    attended = _attend(spec, params["attention"], x, real, keys[0])
    x = _normalize(spec, params["attention"]["norm"], x + dropout(attended, spec.dropout, keys[1]))
    params = params["feed_forward"]
    y = _dense(params["down"], ACTIVATIONS[spec.activation](_dense(params["up"], x)))
    return _normalize(spec, params["norm"], x + dropout(y, spec.dropout, keys[2]))


def _attend(
    spec: EncoderSpec,
    params: Params,
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    key: Array | None,
) -> Float[Array, "B T D"]:
    """Self-attention over the real pieces of each row.

    Three products were never slower than one with joined kernels, and this plain form, which
    can drop out probabilities, as fast as ``jax.nn.dot_product_attention``.
    """
    B, T, D = x.shape

    def heads(name: str) -> Float[Array, "B H T d"]:
        return _dense(params[name], x).reshape(B, T, spec.heads, -1).swapaxes(1, 2)

    query = heads("query") * (D // spec.heads) ** -0.5
    scores = jnp.matmul(query, heads("key").mT, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(real[:, None, None], scores, _MASKED))
    weights = dropout(weights.astype(x.dtype), spec.dropout, key)
    return _dense(params["output"], (weights @ heads("value")).swapaxes(1, 2).reshape(B, T, D))


def _dense(params: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D2"]:
    return x @ params["kernel"].astype(x.dtype) + params["bias"].astype(x.dtype)[None, None]


def _normalize(
    spec: EncoderSpec, params: Params, x: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """Layer norm with fp32 statistics, in the dtype of ``x``."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + spec.norm_epsilon)
    return (y * params["scale"][None, None] + params["bias"][None, None]).astype(x.dtype)
