"""ModernBERT and mmBERT: rotary places, local and global attention, gated feed-forward blocks."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from xdistil_jax.models.functional import dropout
from xdistil_jax.models.layers import (
    ACTIVATIONS,
    attend,
    dense,
    dense_shapes,
    norm_shapes,
    normalize,
    split_heads,
)
from xdistil_jax.models.stack import LayerStack, Ran
from xdistil_jax.types import Params


@dataclass(frozen=True)
class ModernBertSpec:
    """Sizes and choices; the defaults are those of the base model.

    ``local`` says of each layer whether a piece sees only those at most ``window`` away;
    ``theta_global`` and ``theta_local`` are the bases of the rotary frequencies. The first layer
    has no norm before its attention, so it is a subtree of its own even where the others are
    stacked. The other fields are ``EncoderSpec``'s.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    local: tuple[bool, ...]
    positions: int = 8192
    classes: int = 7
    dropout: float = 0.0
    norm_epsilon: float = 1e-5
    activation: str = "gelu"
    head_activation: str = "gelu"
    initializer: float = 0.02
    stacked: bool = True
    outputs: tuple[str, ...] | None = None
    columns: tuple[tuple[int, ...], ...] = ()
    family: str = "modernbert"
    window: int = 64
    theta_global: float = 160_000.0
    theta_local: float = 10_000.0
    norm_bias: bool = False
    attention_bias: bool = False
    feed_forward_bias: bool = False
    head_bias: bool = False

    @property
    def longest(self) -> int:
        """Pieces of the longest row."""
        return self.positions

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """embedding, layer_1 … layer_L: bottom to top."""
        return ("embedding", *(f"layer_{number + 1}" for number in range(self.layers)))

    @property
    def groups(self) -> tuple[str, ...]:
        """Top to bottom; single layers only where they are leaves of their own."""
        stacked = (*(("layers",) if self.layers > 1 else ()), "layer_1")
        return ("head", "norm", *(stacked if self.stacked else self.hidden_names[:0:-1]), "embed")

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return ModernBert(self, rngs)


def parameter_shapes(spec: ModernBertSpec) -> dict[str, Any]:
    """The nested dict of the parameters' shapes."""
    D, F = spec.width, spec.feed_forward

    def without(shapes: dict[str, Any], bias: bool) -> dict[str, Any]:
        return shapes if bias else {n: shape for n, shape in shapes.items() if n != "bias"}

    def norm(lead: tuple[int, ...] = ()) -> dict[str, Any]:
        return without(norm_shapes(D, lead), spec.norm_bias)

    def layer(lead: tuple[int, ...] = ()) -> dict[str, Any]:
        attention = {"qkv": dense_shapes(D, 3 * D, lead), "output": dense_shapes(D, D, lead)}
        blocks = {"up": dense_shapes(D, 2 * F, lead), "down": dense_shapes(F, D, lead)}
        return {
            "attention": {
                **{n: without(s, spec.attention_bias) for n, s in attention.items()},
                "norm": norm(lead),
            },
            "feed_forward": {
                **{n: without(s, spec.feed_forward_bias) for n, s in blocks.items()},
                "norm": norm(lead),
            },
        }

    if spec.stacked:
        middle = {
            "layer_1": layer(),
            **({"layers": layer((spec.layers - 1,))} if spec.layers > 1 else {}),
        }
    else:
        middle = {name: layer() for name in spec.hidden_names[1:]}
    del middle["layer_1"]["attention"]["norm"]
    head = {
        "dense": without(dense_shapes(D, D), spec.head_bias),
        "norm": norm(),
        **dense_shapes(D, spec.classes),
    }
    embed = {"table": (spec.vocab_size, D), "norm": norm()}
    return {"embed": embed, **middle, "norm": norm(), "head": head}


class ModernBert(LayerStack):
    """The parameters of ``ModernBertSpec``; the arithmetic is in the functions below."""

    def __init__(self, spec: ModernBertSpec, rngs: nnx.Rngs) -> None:
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
        x = params["table"][tokens].astype(dtype)
        return normalize(params["norm"], x, self.spec.norm_epsilon)

    def run_layers(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        real: Bool[Array, "B T"],
        keys: Array | None,
    ) -> Ran:
        return _run_layers(self.spec, params, x, real, keys), {}

    def classify(
        self, params: Params, top: Float[Array, "B T D"], key: Array | None
    ) -> Float[Array, "B T C"]:
        spec = self.spec
        y = ACTIVATIONS[spec.head_activation](dense(params["dense"], top))
        y = normalize(params["norm"], y, spec.norm_epsilon)
        return dense(params, dropout(y, spec.dropout, key))


def _run_layers(
    spec: ModernBertSpec,
    params: Params,
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    keys: Array | None,
) -> dict[str, Float[Array, "B T D"]]:
    """Hidden state of every layer, of the last one normalised; only the first stands alone."""
    names, inner = spec.hidden_names[1:], None if keys is None else keys[1:-1]
    local = jnp.asarray(spec.local)

    def step(x: Array, layer: tuple[Params, Array, Array | None]) -> tuple[Array, Array]:
        y = _layer(spec, layer[0], x, real, layer[1], layer[2])
        return y, y

    hidden = {}
    for number in range(1 if spec.stacked else spec.layers):
        key = None if inner is None else inner[number]
        x, _ = step(x, (params[names[number]], local[number], key))
        hidden[names[number]] = x
    if spec.stacked and spec.layers > 1:
        rest = (params["layers"], local[1:], None if inner is None else inner[1:])
        x, states = jax.lax.scan(step, x, rest)
        hidden.update(zip(names[1:], states, strict=True))
    return {**hidden, names[-1]: normalize(params["norm"], x, spec.norm_epsilon)}


def _layer(
    spec: ModernBertSpec,
    params: Params,
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    local: Bool[Array, ""],
    key: Array | None,
) -> Float[Array, "B T D"]:
    keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
    own = params["attention"]
    y = normalize(own["norm"], x, spec.norm_epsilon) if "norm" in own else x
    x = x + dropout(_attend(spec, own, y, real, local, keys[0]), spec.dropout, keys[1])
    own = params["feed_forward"]
    up, gate = jnp.split(dense(own["up"], normalize(own["norm"], x, spec.norm_epsilon)), 2, axis=-1)
    y = dropout(ACTIVATIONS[spec.activation](up) * gate, spec.dropout, keys[2])
    return x + dense(own["down"], y)


def _attend(
    spec: ModernBertSpec,
    params: Params,
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    local: Bool[Array, ""],
    key: Array | None,
) -> Float[Array, "B T D"]:
    T, size = x.shape[1], spec.width // spec.heads
    query, keys, values = (
        split_heads(part, spec.heads) for part in jnp.split(dense(params["qkv"], x), 3, axis=-1)
    )
    places = jnp.arange(T)
    near = jnp.abs(places[:, None] - places[None]) <= spec.window
    allowed = real[:, None, None] & jnp.where(local, near, True)[None, None]
    theta = jnp.where(local, spec.theta_local, spec.theta_global)
    angles = places[:, None] / theta ** (jnp.arange(0, size, 2) / size)[None]
    query, keys = _rotate(query, angles), _rotate(keys, angles)
    joined = attend(query, keys, values, allowed, scale=size**-0.5, rate=spec.dropout, rng=key)
    return dense(params["output"], joined)


def _rotate(x: Float[Array, "B H T d"], angles: Float[Array, "T d2"]) -> Float[Array, "B H T d"]:
    """Turn the pairs of halves (x₁, x₂) of each piece by its angles, in fp32."""
    one, two = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[None, None], jnp.sin(angles)[None, None]
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1).astype(x.dtype)
