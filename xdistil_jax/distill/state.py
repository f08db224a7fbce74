"""What a step trains: the state, split and begun by a stage, and how it lies over the mesh."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int, PyTree

from xdistil_jax import trees
from xdistil_jax.compilation import named
from xdistil_jax.distill.masking import Masking
from xdistil_jax.distill.rates import HParams, abstract_hparams
from xdistil_jax.distill.stages import Program, Stage
from xdistil_jax.models import partition
from xdistil_jax.models.functional import Spec, abstract_params, build
from xdistil_jax.sharding import lay, replicated
from xdistil_jax.types import Batch, EncoderOutput, Params

Lookup = Callable[[PyTree, PyTree, Batch], EncoderOutput]


class TrainState(NamedTuple):
    """What a step reads and returns; ``trainable`` has None where ``frozen`` has a leaf."""

    trainable: Params
    frozen: Params
    opt_state: PyTree
    step: Int[Array, ""]
    key: Array


class Model(NamedTuple):
    """What else decides the executable: student, how the teacher is read, compute dtype, mesh.

    ``split`` lays the parameters over the mesh by the rules of ``models.partition``, as a large
    teacher that is fine-tuned needs; otherwise every device holds them whole. With ``masking``
    pieces are hidden, and the student is asked for these alone.
    """

    student: Spec
    lookup: Lookup | None
    dtype: str
    mesh: Mesh
    split: bool = False
    masking: Masking | None = None


def optimiser(h: HParams) -> optax.GradientTransformation:
    """AdamW without its learning rate; the clipping norm is over trainable gradients only."""
    return optax.chain(
        optax.clip_by_global_norm(h.clip),
        optax.scale_by_adam(),
        optax.add_decayed_weights(
            h.weight_decay, mask=lambda params: jax.tree.map_with_path(_decays, params)
        ),
    )


def _decays(path: tuple[jax.tree_util.DictKey, ...], leaf: Array) -> bool:
    """Matrices decay; vectors don't, even where layers or directions are stacked in one leaf."""
    return leaf.ndim > 1 and path[-1].key not in ("bias", "scale")


def start_state(
    params: Params,
    program: Program,
    key: Array,
    h: HParams,
    *,
    carried: PyTree = None,
    fresh: Sequence[str] = (),
) -> TrainState:
    """Split ``params`` by the program's patterns; fresh moments, or carried ones.

    ``carried`` is the ``opt_state`` of the stage before: leaves that it has keep their moments, but
    for those that ``fresh`` (patterns) covers.

    Raises:
        trees.PatternError: for a pattern that matches no parameter.
    """
    trainable, frozen = trees.partition(params, trees.mask(params, program.trainable))
    # The step donates its state, so it must own every buffer that goes in.
    trainable, frozen = jax.tree.map(jnp.copy, (trainable, frozen))
    opt_state = optimiser(h).init(trainable)
    if carried is not None:
        opt_state = _carry(opt_state, carried, fresh)
    return TrainState(trainable, frozen, opt_state, jnp.zeros((), jnp.int32), key)


def _carry(empty: PyTree, before: PyTree, fresh: Sequence[str]) -> PyTree:
    """Moments of ``before`` for the leaves that it has; the step count goes on for all."""
    old, new = (
        next(s for s in t if isinstance(s, optax.ScaleByAdamState)) for t in (before, empty)
    )

    def take(name: str) -> Params:
        known = {
            path: leaf
            for path, leaf in trees.leaves(getattr(old, name))
            if not any(trees.matches(pattern, path) for pattern in fresh)
        }
        flat = {path: known.get(path, leaf) for path, leaf in trees.leaves(getattr(new, name))}
        zeros = getattr(new, name)
        return trees.combine(trees.unflatten(flat), zeros)

    carried = new._replace(count=jnp.copy(old.count), mu=take("mu"), nu=take("nu"))
    return tuple(carried if isinstance(s, optax.ScaleByAdamState) else s for s in empty)


def stage_state(
    model: Model, stage: Stage, params: Params, key: Array, h: HParams, carried: PyTree
) -> TrainState:
    """The state before the first step of ``stage``, placed; what is ``fresh`` is drawn anew.

    Raises:
        trees.PatternError: for a pattern that matches no parameter.
    """
    if stage.fresh:
        # No step has this number, so none draws its dropout from the same key.
        params = _draw_anew(model, params, stage.fresh, jax.random.fold_in(key, 2**31))
    state = start_state(params, stage.program, key, h, carried=carried, fresh=stage.fresh)
    return place(model, state)


def _draw_anew(model: Model, params: Params, patterns: Sequence[str], key: Array) -> Params:
    chosen = trees.mask(params, patterns)

    @named("draw anew")
    def draw(key: Array) -> Params:
        return trees.partition(build(model.student).init(key), chosen)[0]

    # Compiled, so that what isn't wanted (the embedding, say) is not drawn.
    return trees.combine(place(model, jax.jit(draw)(key)), trees.partition(params, chosen)[1])


def placement(model: Model, tree: PyTree) -> PyTree:
    """The sharding of every leaf of ``tree``: parameters, or a state that holds such trees."""
    whole = replicated(model.mesh)
    rules = partition.rules(model.student, model.mesh) if model.split else {}

    def lie(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = (part.key for part in path if isinstance(part, jax.tree_util.DictKey))
        name = "/".join(keys)
        return NamedSharding(model.mesh, rules[name]) if name in rules else whole

    return jax.tree.map_with_path(lie, tree)


def place(model: Model, tree: PyTree) -> PyTree:
    """``tree`` on the devices, by its ``placement``."""
    return lay(tree, placement(model, tree))


def abstract_state(model: Model, program: Program) -> TrainState:
    """Shapes, dtypes and shardings of the state before the first step; touches no device."""
    params, h = abstract_params(model.student), abstract_hparams(len(program.losses))
    state = jax.eval_shape(
        lambda params, h: start_state(params, program, jax.random.key(0), h), params, h
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state, placement(model, state),
    )  # fmt: skip


def merged(state: TrainState) -> Params:
    """All parameters of a state."""
    return trees.combine(state.trainable, state.frozen)
