"""What the encoders of all families share: keys of dropout, named hidden states, and a head."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from xdistil_jax.models.functional import dropout
from xdistil_jax.models.layers import dense, initialize, merge_columns
from xdistil_jax.types import EncoderOutput, Params

Ran = tuple[dict[str, Float[Array, "B T D"]], dict[str, Float[Array, "B H T T"]]]
"""By name of the layer: hidden states, and attention of those that can tell it."""


class LayerStack(nnx.Module):
    """Embeddings, layers one after the other, and a head on the last one's states.

    ``spec`` is the family's, ``shapes`` the nested dict of its parameters' shapes. A family gives
    ``embed_pieces`` and ``run_layers``, and ``classify`` if its head is more than a dense layer.
    Where parameters are split over devices, ``rows`` says how states are: without it the compiler
    may move states to the weights instead of weights to the states.
    """

    def __init__(self, spec: Any, shapes: Mapping[str, Any], rngs: nnx.Rngs) -> None:
        self.spec = spec
        for name, below in shapes.items():
            setattr(self, name, initialize(below, spec.initializer, rngs))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        token_types: Int[Array, "B T"] | None = None,
        *,
        key: Array | None = None,
        dtype: DTypeLike = jnp.float32,
        rows: Sharding | None = None,
    ) -> EncoderOutput:
        spec, T = self.spec, tokens.shape[1]
        if spec.longest < T:
            raise ValueError(f"rows of {T} pieces: the encoder takes {spec.longest}")
        params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        keys = None if key is None else jax.random.split(key, spec.layers + 2)
        first, last = (None, None) if keys is None else (keys[0], keys[-1])
        real = jnp.arange(T)[None] < lengths[:, None]
        if token_types is None and getattr(spec, "separator", -1) >= 0:
            token_types = second_text(tokens, spec.separator)
        x = self.embed_pieces(params["embed"], tokens, token_types, real, dtype, first)
        x = dropout(x, spec.dropout, first)
        if rows is not None:
            x = jax.lax.with_sharding_constraint(x, rows)
        states, weights = self.run_layers(params, x, real, keys)
        hidden = {"embedding": x, **states}
        top = hidden[spec.hidden_names[-1]].astype(jnp.float32)
        logits = self.classify(params["head"], top, last)
        wanted = spec.hidden_names if spec.outputs is None else spec.outputs
        return EncoderOutput(
            {name: hidden[name].astype(jnp.float32) for name in wanted},
            merge_columns(logits, spec.columns),
            {name: weights[name] for name in getattr(spec, "attention", ())} or None,
        )

    def embed_pieces(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None,
        real: Bool[Array, "B T"],
        dtype: DTypeLike,
        key: Array | None,
    ) -> Float[Array, "B T D"]:
        """What goes into the first layer, before dropout."""
        raise NotImplementedError

    def run_layers(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        real: Bool[Array, "B T"],
        keys: Array | None,
    ) -> Ran:
        """Hidden states by name: of every layer, or of those that ``spec.outputs`` asks for.

        Attention where the spec has a field that asks for it.
        """
        raise NotImplementedError

    def classify(
        self, params: Params, top: Float[Array, "B T D"], key: Array | None
    ) -> Float[Array, "B T C"]:
        """Logits over the checkpoint's own tags."""
        return dense(params, dropout(top, self.spec.dropout, key))


def second_text(tokens: Int[Array, "B T"], separator: int) -> Int[Array, "B T"]:
    """1 behind the first ``separator`` of each row, else 0."""
    behind = jnp.cumsum(tokens == separator, axis=1) - (tokens == separator)
    return jnp.minimum(behind, 1)
