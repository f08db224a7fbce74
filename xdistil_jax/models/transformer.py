"""The transformer student: a small encoder, and a projection to the teacher's width."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array, DTypeLike, Int

from xdistil_jax.models.encoder import Encoder, EncoderSpec
from xdistil_jax.models.layers import dense, dense_shapes, initialize
from xdistil_jax.types import EncoderOutput


@dataclass(frozen=True)
class TransformerSpec:
    """Sizes of the student: those of its encoder, and the width of the layer that it imitates.

    The encoder's layers are leaves of their own (``stacked=False``), so that they can be unfrozen
    one by one. The projection reads the last layer and is of no use after the distillation.
    """

    encoder: EncoderSpec
    teacher_width: int = 768
    imitates: str = "layer_12"

    def __post_init__(self) -> None:
        if self.encoder.stacked:
            raise ValueError("a student's layers are unfrozen one by one: encoder.stacked is True")

    @property
    def groups(self) -> tuple[str, ...]:
        """Top to bottom: head, projection, the layers from the last one on, embedding."""
        head, *below = self.encoder.groups
        return (head, "projection", *below)

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return TransformerStudent(self, rngs)


class TransformerStudent(Encoder):
    """The parameters of ``TransformerSpec``."""

    def __init__(self, spec: TransformerSpec, rngs: nnx.Rngs) -> None:
        super().__init__(spec.encoder, rngs)
        shapes = dense_shapes(spec.encoder.width, spec.teacher_width)
        self.projection = initialize(shapes, spec.encoder.initializer, rngs)
        self.imitates = spec.imitates

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
        output = super().__call__(tokens, lengths, token_types, key=key, dtype=dtype, rows=rows)
        top = output.hidden[self.spec.hidden_names[-1]].astype(dtype)
        params = {name: self.projection[name][...] for name in ("kernel", "bias")}
        return output._replace(hidden={self.imitates: dense(params, top).astype(jnp.float32)})
