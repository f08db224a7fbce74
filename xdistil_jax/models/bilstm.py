"""The paper's student: embedding -> BiLSTM -> projection to the teacher's width -> head.

Gradients and states of padding are zero by construction: the backward direction starts at the
last real piece, so nothing that stands in the padding reaches a real output.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from xdistil_jax.models.functional import dropout
from xdistil_jax.sharding import platform
from xdistil_jax.types import EncoderOutput

_FEW_ROWS = 48


@dataclass(frozen=True)
class BiLSTMSpec:
    """Sizes of the student (section 3 of the paper).

    ``imitates`` names the teacher's layer whose states the projection is to reproduce, ``also``
    others, each with a projection of its own that is of no use after the distillation; the head
    reads the projected vector, as the paper's parameter counts show (``head_on="projection"``), or
    the BiLSTM's states (equations 1 and 3 as printed).

    ``source_width`` > 0 trains with a factored embedding: beside its own row a piece has that of
    the teacher's table, which stays as it is, times a trained projection. So what is learned of
    frequent pieces moves the rare ones, too; then ``join_embedding`` makes one table of both.

    ``pool`` is for classes of whole texts: the ``"last"`` state of each direction (section 6.6), or
    the ``"max"`` over real pieces (as in the paper's code), takes the place of the first piece's
    state. So it is projected to the teacher's state of [CLS], and read by the head; there are no
    other logits (0).
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
    source_width: int = 0
    pool: Literal["none", "last", "max"] = "none"
    also: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """Top to bottom (Table 4): Linear -> Projection -> BiLSTM -> Word Emb."""
        return ("head", "projection", "bilstm", "embed")

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return BiLSTMStudent(self, rngs)


def parameter_count(spec: BiLSTMSpec) -> int:
    """V·E + 2·4·(E·H + H² + H) + (2H·D + D) + (D·C + C): reproduces the sizes of Table 16.

    As deployed: without the teacher's table that a factored embedding is trained with, and without
    projections to other layers.
    """
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
        if spec.source_width:
            # In no group: the teacher's table is never trained.
            self.source = nnx.Dict(table=nnx.Param(jnp.zeros((spec.vocab_size, spec.source_width))))
            self.embed["projection"] = nnx.Param(jnp.zeros((spec.source_width, E)))
        self.bilstm = nnx.Dict(
            kernel=nnx.Param(glorot(batch_axis=0)(rngs.params(), (2, E, 4 * H))),
            recurrent=nnx.Param(jnp.stack(recurrent)),
            bias=nnx.Param(bias),
        )
        self.projection = _dense(rngs, 2 * H, D)
        for name in spec.also:
            self.projection[name] = _dense(rngs, 2 * H, D)
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
        rows: NamedSharding | None = None,
    ) -> EncoderOutput:
        spec = self.spec
        keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
        real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        x = self.embed["table"][...][tokens].astype(dtype)
        if spec.source_width:
            source = self.source["table"][...][tokens].astype(dtype)
            x = x + source @ self.embed["projection"][...].astype(dtype)
        x = dropout(x, spec.dropout, keys[0])
        weights = (self.bilstm[name][...] for name in ("kernel", "recurrent", "bias"))
        states = bilstm(x, real, *weights, spread=_spread(rows))
        if spec.pool != "none":
            pooled = pool_states(states, real, spec.pool)
            states = jnp.concatenate([pooled[:, None], states[:, 1:]], axis=1)
        states = dropout(states, spec.dropout, keys[1])
        projections = {spec.imitates: self.projection, **{n: self.projection[n] for n in spec.also}}
        hidden = {name: _apply_dense(layer, states) for name, layer in projections.items()}
        if spec.projection == "gelu":
            hidden = {n: jax.nn.gelu(each, approximate=True) for n, each in hidden.items()}
        top = hidden[spec.imitates] if spec.head_on == "projection" else states
        top = top if spec.pool == "none" else top[:, :1]
        logits = _apply_dense(self.head, dropout(top, spec.dropout, keys[2]))
        logits = jnp.pad(logits, ((0, 0), (0, tokens.shape[1] - logits.shape[1]), (0, 0)))
        return EncoderOutput(
            {n: each.astype(jnp.float32) for n, each in hidden.items()}, logits.astype(jnp.float32)
        )


def pool_states(
    states: Float[Array, "B T H2"], real: Bool[Array, "B T"], pool: Literal["last", "max"]
) -> Float[Array, "B H2"]:
    """One state a row, the last of each direction or the maximum; 0 for rows without a piece."""
    if pool == "max":
        found = jnp.where(real[..., None], states, -jnp.inf).max(axis=1)
        return jnp.where(real.any(axis=1, keepdims=True), found, 0.0).astype(states.dtype)
    forth, back = jnp.split(states, 2, axis=-1)
    last = jnp.maximum(real.sum(axis=1) - 1, 0)[:, None, None]
    # The backward direction ends at the first piece.
    return jnp.concatenate([jnp.take_along_axis(forth, last, axis=1)[:, 0], back[:, 0]], axis=-1)


def _dense(rngs: nnx.Rngs, inputs: int, outputs: int) -> nnx.Dict:
    kernel = jax.nn.initializers.glorot_uniform()(rngs.params(), (inputs, outputs))
    return nnx.Dict(kernel=nnx.Param(kernel), bias=nnx.Param(jnp.zeros(outputs)))


def _apply_dense(layer: nnx.Dict, x: Float[Array, "B T D"]) -> Float[Array, "B T D2"]:
    return x @ layer["kernel"][...].astype(x.dtype) + layer["bias"][...].astype(x.dtype)[None, None]


def _spread(rows: NamedSharding | None) -> bool:
    """Are rows split over devices whose compiler would sum over them at each step of time?

    That of the TPU takes the sum out of the loop (tpu/COMPILED.md).
    """
    return rows is not None and platform(rows.mesh) != "tpu"


def bilstm(
    x: Float[Array, "B T E"],
    real: Bool[Array, "B T"],
    kernel: Float[Array, "2 E G"],
    recurrent: Float[Array, "2 H G"],
    bias: Float[Array, "2 G"],
    *,
    spread: bool = False,
) -> Float[Array, "B T H2"]:
    """Both directions at once: states [B, T, 2H], zero on padding; G = 4H in the order i, f, g, o.

    The backward direction reads the row reversed; padding keeps the carry at zero, so it starts at
    the last real piece. The carry is fp32, the products are in ``x``'s dtype. ``spread``: are rows
    split over devices? See ``_recur_back``.
    """
    weights = jnp.concatenate([kernel, recurrent], axis=1).astype(x.dtype).swapaxes(1, 2)
    inputs = x.transpose(1, 2, 0)
    both = jnp.stack([inputs, inputs[::-1]], axis=1)
    masks = jnp.stack([real.T, real.T[::-1]], axis=1)[:, :, None]
    states = _recurrence(both, masks, weights, bias[..., None].astype(jnp.float32), spread)
    joined = jnp.concatenate([states[:, 0], states[::-1, 1]], axis=1)
    return joined.transpose(2, 0, 1).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _recurrence(
    x: Float[Array, "T 2 E B"],
    mask: Bool[Array, "T 2 1 B"],
    weights: Float[Array, "2 G EH"],
    bias: Float[Array, "2 G 1"],
    spread: bool,
) -> Float[Array, "T 2 H B"]:
    """The LSTM of both directions: gates = weights @ [x; h] + bias, states zero where masked.

    Rows are the last axis, so the four gates are whole blocks and the product needs no transpose.
    On two cores this layout and the derivative by hand took 52 ms where a scan over rows took 77
    (forward and backward, 64 rows of 32, E=100, H=200).
    """
    return _recur(x, mask, weights, bias, spread)[0]


def _recur(x: Array, mask: Array, weights: Array, bias: Array, spread: bool) -> tuple[Array, tuple]:
    def step(carry: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[tuple, tuple]:
        h, c = carry
        now, real = at
        joined = jnp.concatenate([now, h.astype(now.dtype)], axis=1)
        i, f, g, o = jnp.split(_product("sgi,sib->sgb", weights, joined) + bias, 4, axis=1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        new_c = jnp.where(real, f * c + i * g, 0.0)
        t = jnp.tanh(new_c)
        new_h = jnp.where(real, o * t, 0.0)
        return (new_h, new_c), (new_h, (i, f, g, o, t, c, joined))

    zero = jnp.zeros((2, weights.shape[1] // 4, x.shape[-1]), jnp.float32)
    _, (states, kept) = jax.lax.scan(step, (zero, zero), (x, mask))
    return states, (kept, mask, weights)


def _recur_back(spread: bool, kept: tuple, cotangent: Array) -> tuple[Array, None, Array, Array]:
    """Back through time; the gradient of the weights is summed up on the way, or at the end.

    Of rows that are spread over devices that would be a sum over the devices, too, at each step:
    on CPUs and GPUs XLA leaves it in the loop. There it is one product over all steps, at the end.
    On one CPU that takes memory and, of 64 and 128 rows of 32, a tenth to a third longer; but few
    rows are done sooner than their sums are read and written (12 of 32: 19 ms for 27, 24 of 32: 31
    for 38, forward and back).
    """
    at_each_step, mask, weights = kept
    at_the_end = spread or mask.shape[-1] < _FEW_ROWS
    E = weights.shape[2] - weights.shape[1] // 4
    turned = weights.swapaxes(1, 2)

    def step(carry: tuple[Array, ...], at: tuple) -> tuple[tuple, tuple]:
        dh, dc, *sums = carry
        (i, f, g, o, t, c, joined), real, d_state = at
        dh = jnp.where(real, dh + d_state, 0.0)
        dc = jnp.where(real, dc, 0.0) + dh * o * (1 - t * t)
        by_gate = (
            dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)
        )  # fmt: skip
        d_gates = jnp.concatenate(by_gate, axis=1)
        rounded = d_gates.astype(joined.dtype)
        d_joined = _product("sig,sgb->sib", turned, rounded)
        out = d_joined[:, :E].astype(joined.dtype)
        if at_the_end:
            return (d_joined[:, E:], dc * f), (out, rounded)
        d_weights, d_bias = sums
        d_weights += _product("sgb,sib->sgi", rounded, joined)
        d_bias += d_gates.sum(-1, keepdims=True)
        return (d_joined[:, E:], dc * f, d_weights, d_bias), (out, None)

    zero = jnp.zeros_like(cotangent[0])
    none = () if at_the_end else (jnp.zeros(weights.shape), jnp.zeros((*weights.shape[:2], 1)))
    (_, _, *sums), (d_x, d_gates) = jax.lax.scan(
        step, (zero, zero, *none), (at_each_step, mask, cotangent), reverse=True
    )
    if at_the_end:
        joined = at_each_step[-1]
        of_bias = d_gates.sum((0, 3), dtype=jnp.float32)[..., None]
        sums = [_product("tsgb,tsib->sgi", d_gates, joined), of_bias]
    d_weights, d_bias = sums
    return d_x, None, d_weights.astype(weights.dtype), d_bias


_recurrence.defvjp(_recur, _recur_back)


def _product(axes: str, a: Array, b: Array) -> Array:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)
