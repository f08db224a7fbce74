"""The programs of a run, ready to be lowered for devices that aren't there: shapes, no data.

They are the functions that ``xdistil run`` calls, with the arguments that it would pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import lcm, prod
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from plans import Plan

from xdistil_jax.data.batches import Buckets
from xdistil_jax.distill.rates import abstract_hparams
from xdistil_jax.distill.stages import Stage
from xdistil_jax.distill.state import Model, abstract_state, placement
from xdistil_jax.distill.step import Feed, predict_call, train_call
from xdistil_jax.finetune import fine_tuning
from xdistil_jax.models.functional import abstract_params, build
from xdistil_jax.sharding import batch_sharding, replicated
from xdistil_jax.teacher.attention import AttentiveLookup
from xdistil_jax.teacher.basis import Basis
from xdistil_jax.teacher.cache import CacheLookup
from xdistil_jax.teacher.codec import find_codec
from xdistil_jax.teacher.forward import forward
from xdistil_jax.teacher.shapes import batch_shapes, cut_batches, padded_widths
from xdistil_jax.teacher.source import OnlineLookup
from xdistil_jax.types import Batch


class Program(NamedTuple):
    """A program and its batch: ``rows`` of ``width`` on each chip; ``kept`` bytes lie beside it."""

    name: str
    rows: int
    width: int
    kept: int
    lower: Callable[[], jax.stages.Lowered]


def programs(planned: Plan) -> Iterator[Program]:
    """Every program of the run, each batch width of each: only the widest, or all of them."""
    config, run = planned.experiment.teacher, planned.experiment.run
    spec, stages = planned.teacher, planned.stages
    if config.fine_tune:
        model = Model(spec, None, planned.dtype, planned.teacher_mesh, planned.split)
        stage = fine_tuning(config, spec)
        yield from _training(planned, model, stage, "fine-tuning", config.token_budget)
        yield from _evaluation(planned, model, "evaluation, teacher", config.token_budget)
    taught = any(stage.taught for stage in stages)
    if taught:
        yield from _cache_pass(planned)
    model = Model(
        planned.student, _lookup(planned) if taught else None, planned.dtype, planned.mesh
    )
    first: dict[Any, Stage] = {}
    for stage in stages:
        first.setdefault(stage.program, stage)
    for stage in first.values():
        yield from _training(planned, model, stage, stage.name, run.token_budget)
    yield from _evaluation(planned, model, "evaluation", run.token_budget)


def _lookup(planned: Plan) -> CacheLookup | AttentiveLookup:
    config, attends = planned.experiment, getattr(planned.student, "attends", ())
    coordinates = config.student.imitate == "coordinates"
    states = CacheLookup(planned.layers, config.teacher.codec, coordinates=coordinates)
    if not attends:
        return states
    spec = replace(planned.teacher, outputs=(), attention=attends)
    return AttentiveLookup(states, OnlineLookup(spec, (), planned.dtype))


def _arrays(planned: Plan, model: Model) -> Any:
    """What of the teacher stays on the devices: a cache's bases, all of it where it attends."""
    if model.lookup is None:
        return ()
    whole = replicated(model.mesh)
    if isinstance(model.lookup, CacheLookup):
        return _bases(planned, model.lookup, whole)
    params = abstract_params(model.lookup.online.spec)
    pieces = model.student.encoder.vocab_size
    online = {
        "params": _abstract(params, jax.tree.map(lambda leaf: whole, params)),
        "kept": jax.ShapeDtypeStruct((pieces,), np.int32, sharding=whole),
    }
    return {"states": _bases(planned, model.lookup.states, whole), "online": online}


def _bases(planned: Plan, lookup: CacheLookup, whole: NamedSharding) -> dict[str, Basis]:
    """By layer, where states are restored from coordinates."""
    if planned.coordinates is None or lookup.coordinates:
        return {}
    width = planned.teacher.width
    shapes = (width,), (width, planned.coordinates)
    basis = Basis(*(jax.ShapeDtypeStruct(each, np.float32, sharding=whole) for each in shapes))
    return dict.fromkeys(lookup.layers, basis)


def _budget(planned: Plan, own: int, mesh: Mesh) -> int:
    return planned.tokens_per_chip * mesh.shape["data"] or own


def _widths(planned: Plan) -> tuple[int, ...]:
    """Of the batches: without the text, as if its lengths were spread evenly."""
    longest, count = planned.experiment.teacher.max_length, planned.experiment.run.buckets
    every = tuple(-(-longest * (n + 1) // count) for n in range(count))
    return every if planned.all_buckets else every[-1:]


def _abstract(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own),
        tree, shardings,
    )  # fmt: skip


def _parameters(model: Model) -> Any:
    params = abstract_params(model.student)
    return _abstract(params, placement(model, params))


def _on_chip(tree: Any) -> int:
    """Bytes of ``tree`` on one device."""
    return sum(
        prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _feed(planned: Plan, model: Model, rows: int, width: int) -> Feed:
    """K batches of ``rows`` (all devices together), with what a cache says of them."""
    steps = planned.experiment.run.steps_per_call
    split = batch_sharding(model.mesh, leading=1)

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((steps, rows, *shape), dtype, sharding=split)

    flag = array(bool, width)
    batch = Batch(
        rows=array(np.int32), tokens=array(np.int32, width), lengths=array(np.int32),
        word_start=flag, labels=array(np.int32, width), label_mask=flag, repr_mask=flag,
        logit_mask=flag,
    )  # fmt: skip
    streamed: Any = ()
    if model.lookup is not None:
        numbers = find_codec(planned.experiment.teacher.codec).numbers
        stored = numbers.bytes_per_token(planned.coordinates or planned.teacher.width)
        states = array(numbers.streamed, width, stored // numbers.streamed.itemsize)
        logits = array(np.float16, width, planned.classes)
        streamed = {"hidden": dict.fromkeys(planned.layers, states), "logits": logits}
    count = jax.ShapeDtypeStruct((), np.int32, sharding=replicated(model.mesh))
    return Feed(batch, streamed, count)


def _batches(planned: Plan, model: Model, own: int) -> Iterator[tuple[int, int]]:
    """(rows, width) of the batches, on all devices together."""
    # As run.shards has to be set for so many devices.
    shards = lcm(planned.experiment.run.shards, model.mesh.shape["data"])
    buckets = Buckets(tuple(_widths(planned)), _budget(planned, own, model.mesh), shards)
    yield from zip(buckets.batch_sizes, buckets.widths, strict=True)


def _training(planned: Plan, model: Model, stage: Stage, name: str, own: int) -> Iterator[Program]:
    state = abstract_state(model, stage.program)
    whole = replicated(model.mesh)
    h = abstract_hparams(len(stage.terms), whole)
    # The best parameters so far are kept beside those that are trained.
    kept = _on_chip(state.trainable)
    for rows, width in _batches(planned, model, own):
        feed = _feed(planned, model, rows, width)
        lower = partial(
            train_call(model, stage.program).lower, state, _arrays(planned, model), feed, h
        )
        yield Program(name, rows // model.mesh.shape["data"], width, kept, lower)


def _evaluation(planned: Plan, model: Model, name: str, own: int) -> Iterator[Program]:
    whole = replicated(model.mesh)
    model = model._replace(lookup=None)
    flat = jax.ShapeDtypeStruct((planned.words, planned.classes), np.float32, sharding=whole)
    run = predict_call(model.student, model.dtype, model.mesh, model.split)
    for rows, width in _batches(planned, model, own):
        feed = _feed(planned, model, rows, width)
        slots = feed.batch.tokens
        lower = partial(run.lower, _parameters(model), flat, feed, slots)
        yield Program(name, rows // model.mesh.shape["data"], width, 0, lower)


def _cache_pass(planned: Plan) -> Iterator[Program]:
    """The teacher's forward pass, at the widths that the cache is built with."""
    mesh, dtype = planned.teacher_mesh, planned.dtype
    spec = replace(planned.teacher, outputs=planned.layers)
    model = Model(spec, None, dtype, mesh, planned.split)
    options: dict[str, Any] = {"functional": build(model.student), "layers": planned.layers}
    options |= {"dtype": dtype, "rows": batch_sharding(mesh) if planned.split else None}
    own, per_octave = batch_shapes(mesh)
    widths = padded_widths(planned.experiment.teacher.max_length, per_octave=per_octave)
    split: NamedSharding = batch_sharding(mesh)
    for width in widths if planned.all_buckets else widths[-1:]:
        budget = _budget(planned, own, mesh)
        rows = cut_batches(
            np.array([width]), (width,), token_budget=budget, multiple=mesh.shape["data"]
        )[0].size
        tokens = jax.ShapeDtypeStruct((rows, width), np.int32, sharding=split)
        lengths = jax.ShapeDtypeStruct((rows,), np.int32, sharding=split)
        lower = partial(forward.lower, _parameters(model), tokens, lengths, **options)
        yield Program("cache pass", rows // mesh.shape["data"], width, 0, lower)
