"""Losses: (student, teacher, batch) -> Mean, each under its own mask of the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xdistil_jax.distill.stages import Loss
from xdistil_jax.types import Batch, EncoderOutput, Mean

LossFunction = Callable[[EncoderOutput, EncoderOutput, Batch], Mean]


def _over_layers(
    student: EncoderOutput,
    teacher: EncoderOutput,
    batch: Batch,
    distance: Callable[[Float[Array, "B T D"], Float[Array, "B T D"]], Float[Array, "B T"]],
) -> Mean:
    each = [distance(student.hidden[name], teacher.hidden[name]) for name in teacher.hidden]
    return Mean.of(sum(each[1:], each[0]) / len(each), batch.repr_mask)


def representation(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """Mean over pieces of ‖z̃ˢ − zᵗ‖² / D, averaged over the teacher's layers (L_RL, as MSE)."""
    return _over_layers(student, teacher, batch, lambda s, t: jnp.mean((s - t) ** 2, axis=-1))


def representation_kl(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """Mean over pieces of KL(softmax(zᵗ) ‖ softmax(z̃ˢ)): equation 6, with distributions."""

    def distance(s: Float[Array, "B T D"], t: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        log_t = jax.nn.log_softmax(t)
        return jnp.sum(jnp.exp(log_t) * (log_t - jax.nn.log_softmax(s)), axis=-1)

    return _over_layers(student, teacher, batch, distance)


def logit(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """Mean over first pieces of ‖rˢ − rᵗ‖² / C on raw logits (equation 4, as in the code)."""
    return Mean.of(jnp.mean((student.logits - teacher.logits) ** 2, axis=-1), batch.logit_mask)


def cross_entropy(student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Mean:
    """Mean over labelled first pieces of −log p(label) (equation 2)."""
    log_p = jax.nn.log_softmax(student.logits)
    labels = jnp.maximum(batch.labels, 0)[..., None]
    return Mean.of(-jnp.take_along_axis(log_p, labels, axis=-1)[..., 0], batch.label_mask)


LOSSES: dict[Loss, LossFunction] = {
    "repr": representation,
    "repr_kl": representation_kl,
    "logit": logit,
    "ce": cross_entropy,
}
