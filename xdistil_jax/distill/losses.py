"""Losses: (student, teacher, batch) -> Mean, each under its own mask of the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xdistil_jax.distill.masking import masked_language_model
from xdistil_jax.distill.stages import Loss
from xdistil_jax.types import Batch, EncoderOutput, Mean

LossFunction = Callable[[EncoderOutput, EncoderOutput, Batch], Mean]


def _kept(x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
    """``x`` under the mask and 0 elsewhere.

    To mask the distance alone is not enough: its gradient is 0 times what stands there, and 0 times
    NaN is NaN.
    """
    return jnp.where(mask[..., None], x, 0.0)


def _over_layers(
    student: EncoderOutput,
    teacher: EncoderOutput,
    batch: Batch,
    distance: Callable[[Float[Array, "B T D"], Float[Array, "B T D"]], Float[Array, "B T"]],
) -> Mean:
    mask = batch.repr_mask
    each = [
        distance(_kept(student.hidden[name], mask), _kept(teacher.hidden[name], mask))
        for name in teacher.hidden
    ]
    return Mean.of(sum(each[1:], each[0]) / len(each), mask)


def representation(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """Mean over pieces of ‖z̃ˢ − zᵗ‖² / D, averaged over the teacher's layers (L_RL, as MSE)."""
    return _over_layers(student, teacher, batch, lambda s, t: jnp.mean((s - t) ** 2, axis=-1))


def representation_kl(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """Mean over pieces of KL(softmax(zᵗ) ‖ softmax(z̃ˢ)): equation 6, with distributions."""
    return _over_layers(student, teacher, batch, _kl)


def representation_cosine(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """Mean over pieces of 1 − cos(z̃ˢ, zᵗ); vectors shorter than 1e-6 count as that long."""
    return _over_layers(student, teacher, batch, _cosine_distance)


def _cosine_distance(s: Float[Array, "B T D"], t: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    return 1 - jnp.sum(_unit(s) * _unit(t), axis=-1)


def _unit(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    # Bounded before the root, so that a vector of zeros has a gradient.
    squared = jnp.sum(x**2, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))


def representation_kld_keras(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """Mean over pieces of Σ t·log(t/s), both clipped to [1e-7, 1] and not normalised.

    Equation 6 as the first version of the code computed it, by Keras 2.2.4. Its derivative −t/s
    is below 0 wherever the clip lets it through, so it pushes every coordinate of the student up,
    whatever the teacher says: the least value is at a student of ones, not at the teacher, and
    coordinates outside of the clip get no gradient at all. For comparison with the paper only.
    """
    return _over_layers(student, teacher, batch, _kld_keras)


def _kld_keras(student: Float[Array, "B T D"], teacher: Float[Array, "B T D"]) -> Array:
    t, s = jnp.clip(teacher, 1e-7, 1.0), jnp.clip(student, 1e-7, 1.0)
    return jnp.sum(t * jnp.log(t / s), axis=-1)


def logit(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """Mean over first pieces of ‖rˢ − rᵗ‖² / C on raw logits (equation 4)."""
    return _logit(student, teacher, batch.logit_mask)


def logit_all(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """``logit`` over every real piece, as in the paper's code (but for its padding).

    Nobody told the teacher what to say of a piece inside a word; what it says tells of the word.
    """
    return _logit(student, teacher, batch.repr_mask)


def logit_log_odds(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """``logit``, with log(p/(1 − p)) of the teacher's probabilities as targets.

    Equation 4's logit(pᵗ), as the paper's code has it for classification. The student's softmax
    then is sharper than the teacher's.
    """
    return _logit(student, teacher, batch.logit_mask, _log_odds)


def logit_log_odds_all(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """``logit_log_odds`` over every real piece."""
    return _logit(student, teacher, batch.repr_mask, _log_odds)


def logit_log_prob(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """``logit``, with the teacher's log-probabilities as targets.

    "Logits as logarithms of predicted probabilities" (section 4 of the paper): what a teacher adds
    to all logits of a piece alike, which changes none of its probabilities, needn't be learned.
    """
    return _logit(student, teacher, batch.logit_mask, jax.nn.log_softmax)


def logit_log_prob_all(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """``logit_log_prob`` over every real piece."""
    return _logit(student, teacher, batch.repr_mask, jax.nn.log_softmax)


def _logit(
    student: EncoderOutput,
    teacher: EncoderOutput,
    mask: Bool[Array, "B T"],
    target: Callable[[Float[Array, "B T C"]], Float[Array, "B T C"]] = lambda logits: logits,
) -> Mean:
    error = _kept(student.logits, mask) - target(_kept(teacher.logits, mask))
    return Mean.of(jnp.mean(error**2, axis=-1), mask)


def _log_odds(logits: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
    """log p − log(1 − p) = rᶜ − log Σ_{j≠c} exp(rʲ): finite though p should round to 0 or 1."""
    itself = jnp.eye(logits.shape[-1], dtype=bool)[None, None]
    others = jnp.where(itself, -jnp.inf, logits[:, :, None])
    return logits - jax.nn.logsumexp(others, axis=-1)


def logit_kl(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """Mean over first pieces of KL(softmax(rᵗ) ‖ softmax(rˢ)): soft labels."""
    mask = batch.logit_mask
    return Mean.of(_kl(_kept(student.logits, mask), _kept(teacher.logits, mask)), mask)


def _kl(student: Float[Array, "B T C"], teacher: Float[Array, "B T C"]) -> Float[Array, "B T"]:
    log_t = jax.nn.log_softmax(teacher)
    return jnp.sum(jnp.exp(log_t) * (log_t - jax.nn.log_softmax(student)), axis=-1)


def attention(student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> Mean:
    """Mean over pairs of real pieces of a row of (aˢ − aᵗ)², over heads and the teacher's layers.

    On probabilities, head by head (XtremeDistilTransformers). Where student and teacher have
    different numbers of heads, the means over their heads are compared instead.
    """
    # Of a row whose states are imitated, even if only those of some pieces are.
    real = jnp.arange(batch.tokens.shape[1])[None] < batch.lengths[:, None]
    mask = real & jnp.any(batch.repr_mask, axis=1, keepdims=True)
    pairs = mask[:, :, None] & mask[:, None, :]
    each = [
        _over_heads(student.attention[name], theirs, pairs)
        for name, theirs in teacher.attention.items()
    ]
    return Mean.of(sum(each[1:], each[0]) / len(each), pairs)


def _over_heads(
    student: Float[Array, "B H T T"], teacher: Float[Array, "B H2 T T"], pairs: Bool[Array, "B T T"]
) -> Float[Array, "B T T"]:
    both = [student, teacher]
    if student.shape[1] != teacher.shape[1]:
        both = [jnp.mean(each, axis=1, keepdims=True) for each in both]
    mine, its = (jnp.where(pairs[:, None], each, 0.0) for each in both)
    return jnp.mean((mine - its) ** 2, axis=1)


def cross_entropy(student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Mean:
    """Mean over labelled first pieces of −log p(label) (equation 2)."""
    log_p = jax.nn.log_softmax(_kept(student.logits, batch.label_mask))
    labels = jnp.maximum(batch.labels, 0)[..., None]
    return Mean.of(-jnp.take_along_axis(log_p, labels, axis=-1)[..., 0], batch.label_mask)


LOSSES: dict[Loss, LossFunction] = {
    "repr": representation,
    "repr_kl": representation_kl,
    "repr_cosine": representation_cosine,
    "repr_kld_keras": representation_kld_keras,
    "logit": logit,
    "logit_all": logit_all,
    "logit_log_odds": logit_log_odds,
    "logit_log_odds_all": logit_log_odds_all,
    "logit_log_prob": logit_log_prob,
    "logit_log_prob_all": logit_log_prob_all,
    "logit_kl": logit_kl,
    "ce": cross_entropy,
    "mlm": masked_language_model,
    "attention": attention,
}
