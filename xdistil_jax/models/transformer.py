"""The transformer student: a small encoder, and projections to the teacher's width."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from xdistil_jax.models.encoder import Encoder, EncoderSpec, embed
from xdistil_jax.models.layers import dense, dense_shapes, initialize
from xdistil_jax.types import EncoderOutput, Params


@dataclass(frozen=True)
class TransformerSpec:
    """Sizes of the student: those of its encoder, and the layers of the teacher that it imitates.

    The encoder's layers are leaves of their own (``stacked=False``), so that they can be unfrozen
    one by one. ``imitates`` names the teacher's layers from the top down: the student's last layer
    is to reproduce the first of them, the one below the second, its embeddings the last, if there
    are so many (XtremeDistilTransformers: all layers of the student, to the topmost of the
    teacher). Each has a linear projection of its own, and none if the widths are equal; all are of
    no use after the distillation. ``attends`` names likewise those whose attention it is to
    reproduce. ``source_width``: see ``models.bilstm.BiLSTMSpec``.
    """

    encoder: EncoderSpec
    teacher_width: int = 768
    imitates: tuple[str, ...] = ("layer_12",)
    source_width: int = 0
    attends: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.encoder.stacked:
            raise ValueError("a student's layers are unfrozen one by one: encoder.stacked is True")
        if len(self.imitates) > len(self.encoder.hidden_names):
            raise ValueError(
                f"a student of {self.encoder.layers} layers and embeddings can't imitate "
                f"{len(self.imitates)} layers: {', '.join(self.imitates)}"
            )
        if len(self.attends) > self.encoder.layers:
            raise ValueError(f"a student of {self.encoder.layers} layers has no more attention")

    @property
    def projects(self) -> bool:
        """Are the states brought to another width?"""
        return bool(self.imitates) and self.teacher_width != self.encoder.width

    @property
    def groups(self) -> tuple[str, ...]:
        """Top to bottom: head, projection, the layers from the last one on, embedding."""
        head, *below = self.encoder.groups
        return (head, *("projection",) * self.projects, *below)

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return TransformerStudent(self, rngs)


class TransformerStudent(Encoder):
    """The parameters of ``TransformerSpec``."""

    def __init__(self, spec: TransformerSpec, rngs: nnx.Rngs) -> None:
        layers = spec.encoder.hidden_names[:0:-1]
        own = replace(spec.encoder, attention=layers[: len(spec.attends)])
        super().__init__(own, rngs)
        self.student = spec
        if spec.projects:
            shapes = dense_shapes(own.width, spec.teacher_width)
            self.projection = initialize(
                dict.fromkeys(spec.imitates, shapes), own.initializer, rngs
            )
        if spec.source_width:
            # In no group: the teacher's table is never trained.
            self.source = nnx.Dict(table=nnx.Param(jnp.zeros((own.vocab_size, spec.source_width))))
            self.embed["projection"] = nnx.Param(jnp.zeros((spec.source_width, own.width)))

    def embed_pieces(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None,
        real: Bool[Array, "B T"],
        dtype: DTypeLike,
        key: Array | None,
    ) -> Float[Array, "B T D"]:
        if not self.student.source_width:
            return super().embed_pieces(params, tokens, token_types, real, dtype, key)
        own = {name: below for name, below in params.items() if name != "projection"}
        source = self.source["table"][...][tokens].astype(dtype)
        projected = source @ params["projection"].astype(dtype)
        rows = own["table"][tokens] + projected.astype(jnp.float32)
        return embed(self.spec, own, rows, token_types, dtype, key)

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
        own, hidden = self.spec.hidden_names[::-1], {}
        for name, imitated in zip(own, self.student.imitates, strict=False):
            states = output.hidden[name]
            if self.student.projects:
                layer = {part: leaf[...] for part, leaf in self.projection[imitated].items()}
                states = dense(layer, states.astype(dtype)).astype(jnp.float32)
            hidden[imitated] = states
        if not self.student.attends:
            return output._replace(hidden=hidden)
        pairs = zip(own, self.student.attends, strict=False)
        attention = {imitated: output.attention[name] for name, imitated in pairs}
        return output._replace(hidden=hidden, attention=attention)
