"""What encoders are made of: dense layers, layer norm, attention over masked rows."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from xdistil_jax.models.functional import dropout
from xdistil_jax.types import Params

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    # As PyTorch computes it: jax.nn.gelu takes erfc, which evaluates two branches for one.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype))),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
# What a teacher says, in logarithms, of a tag that it doesn't know.
_UNKNOWN = -10.0
# A finite stand-in for -inf: a row of length 0 then gets a uniform softmax instead of NaN.
_MASKED = -1e30


def dense_shapes(inputs: int, outputs: int, lead: tuple[int, ...] = ()) -> dict[str, Any]:
    """Shapes of a dense layer, of as many as the axes ``lead`` stack."""
    return {"kernel": (*lead, inputs, outputs), "bias": (*lead, outputs)}


def norm_shapes(width: int, lead: tuple[int, ...] = ()) -> dict[str, Any]:
    """Shapes of a layer norm."""
    return {"scale": (*lead, width), "bias": (*lead, width)}


def initialize(shapes: Mapping[str, Any], scale: float, rngs: nnx.Rngs) -> nnx.Dict:
    """Parameters of these shapes: normal with deviation ``scale``, but for biases and norms."""

    def leaf(name: str, shape: tuple[int, ...]) -> Array:
        if name in ("bias", "scale"):
            return jnp.full(shape, float(name == "scale"))
        if name == "positions":
            return scale * _sinusoids(*shape)
        return scale * jax.random.normal(rngs.params(), shape)

    return nnx.Dict(
        **{
            name: initialize(below, scale, rngs)
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


def stack_layers(params: Mapping[str, Any]) -> Params:
    """Parameters of an unstacked encoder -> those of the stacked one, on the host.

    A layer that is built otherwise than the last one stays by itself.
    """
    names = sorted((n for n in params if n.startswith("layer_")), key=lambda n: int(n[6:]))
    same = [
        n for n in names if jax.tree.structure(params[n]) == jax.tree.structure(params[names[-1]])
    ]
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *(params[name] for name in same))
    return {**{n: tree for n, tree in params.items() if n not in same}, "layers": stacked}


def unstack_layers(params: Mapping[str, Any]) -> Params:
    """Parameters of a stacked encoder -> those of the unstacked one."""
    others = {name: tree for name, tree in params.items() if name != "layers"}
    before = sum(name.startswith("layer_") for name in others)
    count = len(jax.tree.leaves(params.get("layers", {}))[0]) if "layers" in params else 0
    return others | {
        f"layer_{before + number + 1}": jax.tree.map(
            lambda leaf, n=number: leaf[n], params["layers"]
        )
        for number in range(count)
    }


def dense(params: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D2"]:
    """x @ kernel + bias, in the dtype of ``x``; layers without a bias have no leaf of that name."""
    y = x @ params["kernel"].astype(x.dtype)
    return y + params["bias"].astype(x.dtype)[None, None] if "bias" in params else y


def normalize(params: Params, x: Float[Array, "B T D"], epsilon: float) -> Float[Array, "B T D"]:
    """Layer norm with fp32 statistics, in the dtype of ``x``."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon)
    y = y * params["scale"][None, None]
    return (y + params["bias"][None, None] if "bias" in params else y).astype(x.dtype)


def split_heads(x: Float[Array, "B T D"], heads: int) -> Float[Array, "B H T d"]:
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-3, -2)


def attend(
    query: Float[Array, "B H T d"],
    key: Float[Array, "B H T d"],
    value: Float[Array, "B H T d"],
    allowed: Bool[Array, "B 1 T T"] | Bool[Array, "B 1 1 T"],
    *,
    scale: float,
    bias: Float[Array, "B H T T"] | None = None,
    rate: float = 0.0,
    rng: Array | None = None,
) -> Float[Array, "B T D"]:
    """softmax(scale · query keyᵀ + bias) value, over the allowed pieces.

    This plain form, which can drop out probabilities, was as fast as
    ``jax.nn.dot_product_attention``.
    """
    return mix(attention_of(query, key, allowed, scale=scale, bias=bias), value, rate, rng)


def attention_of(
    query: Float[Array, "B H T d"],
    key: Float[Array, "B H T d"],
    allowed: Bool[Array, "B 1 T T"] | Bool[Array, "B 1 1 T"],
    *,
    scale: float,
    bias: Float[Array, "B H T T"] | None = None,
) -> Float[Array, "B H T T"]:
    """Probabilities of the allowed pieces, for each query; in fp32."""
    scores = jnp.matmul(query * scale, key.mT, preferred_element_type=jnp.float32)
    scores = scores if bias is None else scores + bias.astype(jnp.float32)
    return jax.nn.softmax(jnp.where(allowed, scores, _MASKED))


def mix(
    weights: Float[Array, "B H T T"],
    value: Float[Array, "B H T d"],
    rate: float,
    rng: Array | None,
) -> Float[Array, "B T D"]:
    """Values by their probabilities, of which a share ``rate`` is dropped; heads joined."""
    B, _, T, _ = value.shape
    weights = dropout(weights.astype(value.dtype), rate, rng)
    return (weights @ value).swapaxes(1, 2).reshape(B, T, -1)


def merge_columns(
    logits: Float[Array, "B T C"], columns: tuple[tuple[int, ...], ...]
) -> Float[Array, "B T C2"]:
    """Logits over other tags: each is the sum of the probabilities of its ``columns``.

    As log-sum-exp of log-probabilities; a mere change of order keeps the logits as they are, and
    so does an empty ``columns``.
    """
    if not columns:
        return logits
    if sorted(columns) == [(number,) for number in range(logits.shape[-1])]:
        return logits[..., np.array(columns)[:, 0]]
    known = jax.nn.log_softmax(logits)
    nothing = jnp.full(logits.shape[:-1], _UNKNOWN, logits.dtype)
    merged = [
        jax.nn.logsumexp(known[..., np.array(part)], axis=-1) if part else nothing
        for part in columns
    ]
    return jnp.stack(merged, axis=-1)
