"""The paper's student: embedding -> BiLSTM -> projection to the teacher's width -> head.

Gradients and states of padding are zero by construction: the backward direction starts at the
last real piece, so nothing that stands in the padding reaches a real output.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from xdistil_jax.models.functional import dropout
from xdistil_jax.types import EncoderOutput


@dataclass(frozen=True)
class BiLSTMSpec:
    """Sizes of the student (section 3 of the paper).

    ``imitates`` names the teacher's layer whose states the projection is to reproduce; the head
    reads the projected vector, as the paper's parameter counts show (``head_on="projection"``), or
    the BiLSTM's states (equations 1 and 3 as printed).
    """

    vocab_size: int
    embed: int = 50
    hidden: int = 200
    teacher_width: int = 768
    classes: int = 7
    projection: Literal["gelu", "linear"] = "gelu"
    head_on: Literal["projection", "bilstm"] = "projection"
    imitates: str = "layer_6"
    dropout: float = 0.2

    @property
    def groups(self) -> tuple[str, ...]:
        """Top to bottom (Table 4): Linear -> Projection -> BiLSTM -> Word Emb."""
        return ("head", "projection", "bilstm", "embed")

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return BiLSTMStudent(self, rngs)


def parameter_count(spec: BiLSTMSpec) -> int:
    """V·E + 2·4·(E·H + H² + H) + (2H·D + D) + (D·C + C): reproduces the sizes of Table 16."""
    V, E, H = spec.vocab_size, spec.embed, spec.hidden
    D, C = spec.teacher_width, spec.classes
    head_width = D if spec.head_on == "projection" else 2 * H
    return V * E + 8 * (E * H + H * H + H) + (2 * H * D + D) + (head_width * C + C)


class BiLSTMStudent(nnx.Module):
    """The layers of ``BiLSTMSpec``; both directions are one batched recurrence."""

    def __init__(self, spec: BiLSTMSpec, rngs: nnx.Rngs) -> None:
        self.spec = spec
        E, H, D = spec.embed, spec.hidden, spec.teacher_width
        uniform, orthogonal = jax.nn.initializers.uniform, jax.nn.initializers.orthogonal
        glorot = jax.nn.initializers.glorot_uniform
        table = uniform(0.2)(rngs.params(), (spec.vocab_size, E)) - 0.1
        recurrent = [orthogonal()(rngs.params(), (H, 4 * H)) for _ in range(2)]
        # Gates i, f, g, o; the forget gate starts open, so gradients reach far words from step 1.
        bias = jnp.zeros((2, 4 * H)).at[:, H : 2 * H].set(1.0)
        self.embed = nnx.Dict(table=nnx.Param(table))
        self.bilstm = nnx.Dict(
            kernel=nnx.Param(glorot(batch_axis=0)(rngs.params(), (2, E, 4 * H))),
            recurrent=nnx.Param(jnp.stack(recurrent)),
            bias=nnx.Param(bias),
        )
        self.projection = _dense(rngs, 2 * H, D)
        head_width = D if spec.head_on == "projection" else 2 * H
        self.head = _dense(rngs, head_width, spec.classes)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        token_types: Int[Array, "B T"] | None = None,
        *,
        key: Array | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> EncoderOutput:
        spec = self.spec
        keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
        real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        x = self.embed["table"][...][tokens].astype(dtype)
        x = dropout(x, spec.dropout, keys[0])
        states = bilstm(x, real, *(self.bilstm[n][...] for n in ("kernel", "recurrent", "bias")))
        states = dropout(states, spec.dropout, keys[1])
        projected = _apply_dense(self.projection, states)
        if spec.projection == "gelu":
            projected = jax.nn.gelu(projected, approximate=True)
        top = projected if spec.head_on == "projection" else states
        logits = _apply_dense(self.head, dropout(top, spec.dropout, keys[2]))
        return EncoderOutput(
            {spec.imitates: projected.astype(jnp.float32)}, logits.astype(jnp.float32)
        )


def _dense(rngs: nnx.Rngs, inputs: int, outputs: int) -> nnx.Dict:
    kernel = jax.nn.initializers.glorot_uniform()(rngs.params(), (inputs, outputs))
    return nnx.Dict(kernel=nnx.Param(kernel), bias=nnx.Param(jnp.zeros(outputs)))


def _apply_dense(layer: nnx.Dict, x: Float[Array, "B T D"]) -> Float[Array, "B T D2"]:
    return x @ layer["kernel"][...].astype(x.dtype) + layer["bias"][...].astype(x.dtype)[None, None]


def bilstm(
    x: Float[Array, "B T E"],
    real: Bool[Array, "B T"],
    kernel: Float[Array, "2 E G"],
    recurrent: Float[Array, "2 H G"],
    bias: Float[Array, "2 G"],
) -> Float[Array, "B T H2"]:
    """Both directions at once: states [B, T, 2H], zero on padding; G = 4H in the order i, f, g, o.

    The input products of all steps are one matrix product before the recurrence; the backward
    direction reads the row reversed, and padding passes the (zero) carry through unchanged, so it
    starts at the last real piece. The carry is fp32, the products are in ``x``'s dtype.
    """
    B, H = x.shape[0], recurrent.shape[1]
    both = jnp.stack([x, x[:, ::-1]])
    gates = jnp.einsum("sbte,seg->tsbg", both, kernel.astype(x.dtype))
    gates = gates + bias.astype(x.dtype)[None, :, None]
    masks = jnp.stack([real, real[:, ::-1]]).transpose(2, 0, 1)[..., None]
    weights = recurrent.astype(x.dtype)

    def step(
        carry: tuple[Array, Array], inputs: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        h, c = carry
        gate, mask = inputs
        total = (gate + jnp.einsum("sbh,shg->sbg", h.astype(x.dtype), weights)).astype(jnp.float32)
        i, f, g, o = jnp.split(total, 4, axis=-1)
        new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
        kept = (jnp.where(mask, new_h, h), jnp.where(mask, new_c, c))
        return kept, jnp.where(mask, new_h, 0.0).astype(x.dtype)

    zero = jnp.zeros((2, B, H), jnp.float32)
    _, states = jax.lax.scan(step, (zero, zero), (gates, masks))
    forward, backward = states[:, 0], states[::-1, 1]
    return jnp.concatenate([forward, backward], axis=-1).transpose(1, 0, 2)
