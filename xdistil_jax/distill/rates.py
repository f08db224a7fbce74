"""A stage's numbers as traced values, and the learning rate that follows from them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from xdistil_jax.distill.stages import Decay, Stage


class HParams(NamedTuple):
    """The numbers of a stage, all traced: weights [terms], then scalars.

    The rate changes once in ``unit`` steps (1, or those of an epoch); ``warmup``, ``total`` and
    ``period`` count such units.
    """

    weights: Float[Array, "terms"]
    unit: Int[Array, ""]
    peak: Float[Array, ""]
    warmup: Float[Array, ""]
    total: Float[Array, ""]
    floor: Float[Array, ""]
    weight_decay: Float[Array, ""]
    clip: Float[Array, ""]
    period: Float[Array, ""]
    period_mult: Float[Array, ""]
    peak_mult: Float[Array, ""]


def hparams(stage: Stage, total: int, epoch: int = 1) -> HParams:
    """The numbers of ``stage`` when it lasts ``total`` steps, and an epoch of it ``epoch``."""
    s = stage.schedule
    unit = epoch if s.every == "epoch" else 1
    rise = s.warmup * total / unit
    warmup = float(int(rise)) if s.decay == "bert" else max(1.0, rise)
    scalars = (s.peak, warmup, total / unit, s.floor, s.weight_decay)
    scalars += (s.clip, s.period, s.period_mult, s.peak_mult)
    weights = jnp.asarray([term.weight for term in stage.terms], jnp.float32)
    return HParams(
        weights,
        jnp.asarray(unit, jnp.int32),
        *(jnp.asarray(value, jnp.float32) for value in scalars),
    )


def abstract_hparams(terms: int, sharding: NamedSharding | None = None) -> HParams:
    """Shapes and dtypes of ``hparams`` for so many terms; touches no device."""

    def array(dtype: type, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    scalars = (array(jnp.float32) for _ in HParams._fields[2:])
    return HParams(array(jnp.float32, terms), array(jnp.int32), *scalars)


def learning_rate(step: Int[Array, ""], h: HParams, decay: Decay) -> Float[Array, ""]:
    """Linear warm-up to the peak, then ``decay`` to the floor.

    With n the number of whole units before ``step``, W and N those of warm-up and stage:

    * warm-up: times (n + 1) / W while n + 1 < W;
    * cosine, linear: from the peak at W to the floor at N;
    * exponential: peak · (floor / peak)^((n − W + 1) / (N − W + 1)), the peak at W − 1;
    * restarts: a cosine from the peak to the floor in ``period`` + 1 units, both ends included;
      then anew, with the period and the peak multiplied by theirs;
    * bert: peak · n / W while n < W, a whole number here, and then peak · (1 − n / N): the first
      rate is 0, and none is the peak, but for the first where W is 0. It ignores the floor.
    """
    done = (step // h.unit).astype(jnp.float32)
    if decay == "bert":
        return h.peak * jnp.where(
            done < h.warmup, done / jnp.maximum(h.warmup, 1), 1 - done / h.total
        )
    return jnp.minimum(1.0, (done + 1) / h.warmup) * _AFTER[decay](done, h)


def _cosine(done: Array, h: HParams) -> Array:
    return _between(h, h.peak, 0.5 * (1 + jnp.cos(jnp.pi * _progress(done, h))))


def _linear(done: Array, h: HParams) -> Array:
    return _between(h, h.peak, 1 - _progress(done, h))


def _constant(done: Array, h: HParams) -> Array:
    return h.peak


def _exponential(done: Array, h: HParams) -> Array:
    share = jnp.clip((done - h.warmup + 1) / (h.total - h.warmup + 1), 0.0, 1.0)
    return h.peak * jnp.exp(jnp.log(h.floor / h.peak) * share)


def _restarts(done: Array, h: HParams) -> Array:
    def anew(cycle: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        now, period, peak = cycle
        return now - period - 1, period * h.period_mult, peak * h.peak_mult

    # Each cycle is longer than the one before, so there are few.
    now, period, peak = jax.lax.while_loop(
        lambda cycle: cycle[0] > cycle[1], anew, (done, h.period, h.peak)
    )
    return _between(h, peak, 0.5 * (1 + jnp.cos(jnp.pi * now / period)))


def _between(h: HParams, peak: Array, share: Array) -> Array:
    return h.floor + (peak - h.floor) * share


def _progress(done: Array, h: HParams) -> Array:
    return jnp.clip((done - h.warmup) / jnp.maximum(h.total - h.warmup, 1), 0.0, 1.0)


_AFTER: dict[str, Callable[[Array, HParams], Array]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "restarts": _restarts,
    "exponential": _exponential,
}
