"""The train step as a pure function: (program, state, batch, hparams) -> (state, metrics).

What decides the executable is static and hashable; every number is traced, so changing a learning
rate or a loss weight never recompiles. Parameters are split before they are differentiated: frozen
ones get no gradient, no moments, no share in the clipping norm, and stay bit-identical.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from xdistil_jax import trees
from xdistil_jax.compilation import named
from xdistil_jax.distill.losses import LOSSES
from xdistil_jax.distill.rates import HParams, learning_rate
from xdistil_jax.distill.stages import Loss, Program
from xdistil_jax.distill.state import Model, TrainState, abstract_state, optimiser, placement
from xdistil_jax.models.functional import Spec, build
from xdistil_jax.sharding import batch_sharding, replicated
from xdistil_jax.types import Batch, EncoderOutput, Mean, Params


class Feed(NamedTuple):
    """Up to K batches of one bucket: leaves [K, B, …]; only the first ``count`` are real."""

    batch: Batch
    streamed: PyTree
    count: Int[Array, ""]


class CallMetrics(NamedTuple):
    """What a call tells: a mean for each loss over its steps, which is all that the loop logs.

    The learning rate, and the norm of the gradient before it is clipped, are those of the last
    step, for whoever looks into training.
    """

    means: tuple[Mean, ...]
    learning_rate: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def train_step(
    model: Model,
    program: Program,
    state: TrainState,
    arrays: PyTree,
    batch: Batch,
    streamed: PyTree,
    h: HParams,
) -> tuple[TrainState, CallMetrics]:
    """One update. The loss is Σ wᵢ · total ᵢ / countᵢ over the program's terms."""
    target = None if model.lookup is None else model.lookup(arrays, streamed, batch)
    student = build(model.student)
    key = jax.random.fold_in(state.key, state.step)
    batch = _with_masks(model, batch, key)

    def objective(trainable: Params) -> tuple[Array, tuple[Mean, ...]]:
        params = trees.combine(trainable, state.frozen)
        output = student.apply(
            params,
            batch.tokens,
            batch.lengths,
            batch.token_types,
            key=key,
            **_options(model, batch),
        )
        means = tuple(LOSSES[name](output, target, batch) for name in program.losses)
        return sum(w * mean.compute() for w, mean in zip(h.weights, means, strict=True)), means

    gradient, means = jax.grad(objective, has_aux=True)(state.trainable)
    updates, opt_state = optimiser(h).update(gradient, state.opt_state, state.trainable)
    rate = learning_rate(state.step, h, program.decay)
    trainable = jax.tree.map(lambda p, u: p - rate * u, state.trainable, updates)
    metrics = CallMetrics(means, rate, optax.global_norm(gradient))
    return state._replace(trainable=trainable, opt_state=opt_state, step=state.step + 1), metrics


@lru_cache(maxsize=256)
def train_call(model: Model, program: Program) -> Callable[..., tuple[TrainState, CallMetrics]]:
    """(state, arrays, feed, hparams) -> (state, metrics), jitted: ``feed.count`` steps in one call.

    The same function for equal arguments, so equal programs compile once for each bucket and K.
    The state is donated.
    """

    @named(f"train step {'+'.join(program.losses)}")
    def call(state: TrainState, arrays: PyTree, feed: Feed, h: HParams) -> Any:
        frozen, key = state.frozen, state.key

        def body(i: Array, carry: tuple[TrainState, CallMetrics]) -> tuple[TrainState, CallMetrics]:
            # Only what changes is carried round the loop.
            moving, so_far = carry
            batch, streamed = _at((feed.batch, feed.streamed), i)
            full = moving._replace(frozen=frozen, key=key)
            after, now = train_step(model, program, full, arrays, batch, streamed, h)
            means = tuple(a.merge(b) for a, b in zip(so_far.means, now.means, strict=True))
            return after._replace(frozen=None, key=None), now._replace(means=means)

        zero = jnp.zeros((), jnp.float32)
        nothing = CallMetrics(tuple(Mean(zero, zero) for _ in program.losses), zero, zero)
        moving = state._replace(frozen=None, key=None)
        moving, metrics = jax.lax.fori_loop(0, feed.count, body, (moving, nothing))
        return moving._replace(frozen=frozen, key=key), metrics

    whole = replicated(model.mesh)
    state = placement(model, abstract_state(model, program)) if model.split else whole
    return jax.jit(call, donate_argnums=0, out_shardings=(state, whole))


def _at(tree: PyTree, i: Int[Array, ""]) -> PyTree:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), tree)


@lru_cache(maxsize=64)
def loss_call(model: Model, losses: tuple[Loss, ...]) -> Callable[..., tuple[Mean, ...]]:
    """(params, arrays, feed) -> a mean for each loss, jitted, without dropout."""

    @named(f"held-out loss {'+'.join(losses)}")
    def call(params: Mapping[str, Any], arrays: PyTree, feed: Feed) -> tuple[Mean, ...]:
        def body(i: Array, so_far: tuple[Mean, ...]) -> tuple[Mean, ...]:
            batch, streamed = _at((feed.batch, feed.streamed), i)
            batch = _with_masks(model, batch, None)
            output = _forward(model, params, batch)
            target = None if model.lookup is None else model.lookup(arrays, streamed, batch)
            return tuple(
                mean.merge(LOSSES[name](output, target, batch))
                for mean, name in zip(so_far, losses, strict=True)
            )

        zero = Mean(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
        return jax.lax.fori_loop(0, feed.count, body, (zero,) * len(losses))

    return jax.jit(call, out_shardings=replicated(model.mesh))


@lru_cache(maxsize=64)
def predict_call(
    student: Spec, dtype: str, mesh: Mesh, split: bool = False
) -> Callable[..., Float[Array, "W C"]]:
    """(params, flat [W C], feed, slots [K B T]) -> flat, with each piece's logits at its slot.

    ``slots`` is the number of the word that a piece stands for, or W where it stands for none.
    """
    model = Model(student, None, dtype, mesh, split)

    @named("predict")
    def call(
        params: Params, flat: Float[Array, "W C"], feed: Feed, slots: Int[Array, "K B T"]
    ) -> Float[Array, "W C"]:
        def body(i: Array, flat: Float[Array, "W C"]) -> Float[Array, "W C"]:
            batch, slot = _at((feed.batch, slots), i)
            logits = _forward(model, params, batch).logits.reshape(-1, flat.shape[1])
            return flat.at[slot.reshape(-1)].set(logits.astype(flat.dtype), mode="drop")

        return jax.lax.fori_loop(0, feed.count, body, flat)

    return jax.jit(call, out_shardings=replicated(mesh))


def _forward(model: Model, params: Mapping[str, Any], batch: Batch) -> EncoderOutput:
    return build(model.student).apply(
        params, batch.tokens, batch.lengths, batch.token_types, **_options(model, batch)
    )


def _with_masks(model: Model, batch: Batch, key: Array | None) -> Batch:
    return batch if model.masking is None else model.masking(batch, key)


def _options(model: Model, batch: Batch) -> dict[str, Any]:
    asked = {} if batch.masked is None else {"places": batch.masked.places}
    spread = model.split or model.mesh.shape["data"] > 1
    rows = {"rows": batch_sharding(model.mesh)} if spread else {}
    return {"dtype": jnp.dtype(model.dtype), **rows, **asked}
