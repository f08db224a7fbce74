"""The step: what is frozen stays, updates equal full-tree optax, numbers never recompile."""

from dataclasses import replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.distill.toys import (
    GROUPS,
    ONE,
    SPEC,
    TWO,
    Teacher,
    equal,
    make_feeds,
    make_model,
    make_params,
    make_sampler,
)
from xdistil_jax import trees
from xdistil_jax.distill.losses import LOSSES
from xdistil_jax.distill.rates import hparams, learning_rate
from xdistil_jax.distill.stages import Program, Schedule, Stage, Term
from xdistil_jax.distill.state import merged, start_state
from xdistil_jax.distill.step import Feed, train_call
from xdistil_jax.distill.strategies import plan
from xdistil_jax.models.functional import build
from xdistil_jax.sharding import replicate

MODEL = make_model()
ALL = Stage(
    "all",
    (Term("ce", 2.0), Term("logit", 0.5), Term("repr", 3.0)),
    GROUPS,
    0.5,
    Schedule(peak=0.02, warmup=0.1, weight_decay=0.1),
)
TOTAL = 40
D42 = plan("D4.2", GROUPS)


def start(stage=ALL, model=MODEL, params=None):
    """(state, hyper-parameters), placed."""
    h = hparams(stage, TOTAL)
    params = make_params() if params is None else params
    state = start_state(params, stage.program, jax.random.key(3), h)
    return replicate(state, model.mesh), replicate(h, model.mesh)


def feeds_of(stage=ALL, steps=4, model=MODEL, buckets=ONE):
    return make_feeds(model, make_sampler(stage.labelled_fraction, buckets=buckets), steps=steps)


def run(stage=ALL, calls=2, steps=4, model=MODEL, arrays=None, feeds=None, **options):
    """The state after some calls, and the metrics of each."""
    state, h = start(stage, model, **options)
    call = train_call(model, stage.program)
    arrays = replicate(Teacher().arrays if arrays is None else arrays, model.mesh)
    metrics = []
    for feed in islice(feeds_of(stage, steps, model) if feeds is None else feeds, calls):
        state, now = call(state, arrays, feed, h)
        metrics.append(now)
    return state, metrics


def one_by_one(feeds):
    """The same batches, a call for each: every feed's slots are turned until its turn comes."""
    for feed in feeds:
        for number in range(int(feed.count)):
            turned = jax.tree.map(lambda x, n=number: jnp.roll(x, -n, 0), feed[:2])
            yield Feed(*replicate(turned, MODEL.mesh), jnp.ones((), jnp.int32))


def single_batches(stage):
    """(batch, streamed) of each step."""
    for feed in feeds_of(stage):
        for number in range(int(feed.count)):
            yield jax.tree.map(lambda leaf, n=number: leaf[n], (feed.batch, feed.streamed))


# --- what is frozen --------------------------------------------------------------------------


@pytest.mark.parametrize("stage", D42, ids=lambda stage: stage.name)
def test_frozen_leaves_are_bit_identical(stage):
    before = dict(trees.leaves(make_params()))
    # Decay and a large rate: both would show on a leaf that isn't frozen.
    stage = replace(stage, schedule=Schedule(peak=0.1, weight_decay=0.5))
    state, _ = run(stage)
    mask = dict(trees.leaves(trees.mask(make_params(), stage.trainable)))
    assert set(mask) == set(before)
    for path, leaf in trees.leaves(merged(state)):
        assert equal(leaf, before[path]) == (not mask[path]), path


# --- the update ------------------------------------------------------------------------------


def full_tree_optax(stage, params):
    """AdamW on the whole tree, under the boolean tree as it is printed."""
    printed = trees.describe(trees.mask(params, stage.trainable)).splitlines()
    labels = trees.unflatten({line[2:]: line[0] for line in printed})
    s = stage.schedule
    rates = optax.warmup_cosine_decay_schedule(0.0, s.peak, int(s.warmup * TOTAL), TOTAL, s.floor)
    # While it warms up, the first step isn't lost: it has a rate already.
    warm = s.warmup * TOTAL
    train = optax.chain(
        optax.clip_by_global_norm(s.clip),
        optax.scale_by_adam(),
        optax.add_decayed_weights(
            s.weight_decay,
            mask=lambda tree: jax.tree.map_with_path(lambda p, _: p[-1].key != "bias", tree),
        ),
        optax.scale_by_learning_rate(lambda n: jnp.where(n < warm, rates(n + 1), rates(n))),
    )
    return optax.multi_transform({"x": train, ".": optax.set_to_zero()}, labels)


@pytest.mark.parametrize(("number", "clip"), [(0, 0.4), (3, 1.0), (9, 2.0)])
def test_an_update_equals_full_tree_optax_under_the_mask(number, clip):
    stage = (*D42, ALL)[number]
    stage = replace(stage, schedule=replace(ALL.schedule, clip=clip))
    params, key = make_params(), jax.random.key(3)
    tx = full_tree_optax(stage, params)
    arrays = Teacher().arrays

    def objective(params, number, batch, streamed):
        target = Teacher.lookup(arrays, streamed, batch)
        output = build(SPEC).apply(
            params, batch.tokens, batch.lengths, key=jax.random.fold_in(key, number)
        )
        return sum(t.weight * LOSSES[t.loss](output, target, batch).compute() for t in stage.terms)

    @jax.jit
    def update(params, opt_state, number, batch, streamed):
        gradient = jax.grad(objective)(params, number, batch, streamed)
        trained = trees.partition(gradient, trees.mask(params, stage.trainable))[0]
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, optax.global_norm(trained)

    opt_state, norms = tx.init(params), []
    for step, (batch, streamed) in enumerate(islice(single_batches(stage), 8)):
        params, opt_state, norm = update(params, opt_state, step, batch, streamed)
        norms.append(float(norm))
    state, metrics = run(stage, calls=8, feeds=one_by_one(feeds_of(stage)))
    # Some steps are clipped and some are not.
    assert min(norms) < clip < max(norms)
    found = [now.gradient_norm for now in metrics]
    np.testing.assert_allclose(found, norms, rtol=1e-3)
    expected = dict(trees.leaves(params))
    for path, leaf in trees.leaves(merged(state)):
        np.testing.assert_allclose(leaf, expected[path], atol=2e-5, err_msg=path)


def test_the_step_uses_the_rate_of_its_number():
    _, metrics = run(calls=3, steps=4)
    h = hparams(ALL, TOTAL)
    lasts = np.cumsum([int(feed.count) for feed in islice(feeds_of(), 3)]) - 1
    for last, now in zip(lasts, metrics, strict=True):
        np.testing.assert_allclose(
            now.learning_rate, learning_rate(jnp.asarray(last), h, "cosine"), rtol=1e-6
        )


def test_a_padding_that_holds_nan_changes_nothing():
    tables = Teacher().arrays
    # Piece 0 stands on padding alone.
    spoiled = jax.tree.map(lambda table: table.at[0].set(jnp.nan), tables)
    mine, one = run(arrays=tables)
    its, other = run(arrays=spoiled)
    assert equal(merged(mine), merged(its))
    assert equal(one, other)


# --- one compile -----------------------------------------------------------------------------


def test_one_compile_for_each_program_bucket_and_k():
    # A program of its own, so that no other test has compiled it.
    stage = replace(ALL, trainable=("head", "embed"), schedule=Schedule(decay="constant"))
    call = train_call(make_model(), replace(stage, name="equal").program)
    assert call is train_call(MODEL, stage.program)
    arrays = replicate(Teacher().arrays, MODEL.mesh)
    state, _ = start(stage)
    shapes, counts = set(), set()
    for steps in (3, 2):
        for number, feed in enumerate(islice(feeds_of(stage, steps, buckets=TWO), 16)):
            change = replace(
                stage,
                terms=tuple(replace(term, weight=number + 0.5) for term in stage.terms),
                schedule=Schedule(peak=1e-3 / (number + 1), decay="constant", clip=number + 1.0),
            )
            h = replicate(hparams(change, 100 + number), MODEL.mesh)
            state, _ = call(state, arrays, feed, h)
            shapes.add(feed.batch.tokens.shape)
            counts.add((steps, int(feed.count)))
    assert len(counts) > 2
    assert len(shapes) == 2 * len(TWO.widths) == 4
    assert call._cache_size() == len(shapes)


# --- K steps in one call ---------------------------------------------------------------------


def test_k_steps_in_one_call_equal_single_calls():
    together, metrics = run(calls=3)
    feeds = list(islice(feeds_of(), 3))
    counts = [int(feed.count) for feed in feeds]
    assert max(counts) > 1
    single, each = run(calls=sum(counts), feeds=one_by_one(feeds))
    assert equal(together, single)
    for now, count in zip(metrics, counts, strict=True):
        means = [each.pop(0) for _ in range(count)]
        for number, mean in enumerate(now.means):
            total = np.sum([m.means[number].total for m in means], dtype=np.float64)
            np.testing.assert_allclose(mean.total, total, rtol=1e-5)
            assert int(mean.count) == sum(int(m.means[number].count) for m in means)
        assert equal(now[1:], means[-1][1:])


def test_the_number_of_slots_changes_no_more_than_rounding():
    together, _ = run(calls=2)
    single, _ = run(calls=int(together.step), steps=1)
    assert int(single.step) == int(together.step)
    for (path, mine), (_, its) in zip(
        *map(trees.leaves, map(merged, (together, single))), strict=True
    ):
        np.testing.assert_allclose(mine, its, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_remainder_is_exactly_its_steps(count):
    feed = next(f for f in feeds_of() if int(f.count) == 4)
    # What stands behind the count is real text here, and must not be looked at.
    cut = feed._replace(count=jnp.asarray(count, jnp.int32))
    after, [metrics] = run(feeds=[cut])
    expected, _ = run(feeds=one_by_one([cut]), calls=count)
    assert int(after.step) == count
    assert equal(after, expected)
    assert count or float(metrics.means[0].count) == 0


# --- devices ---------------------------------------------------------------------------------


def test_one_device_equals_eight():
    eight = make_model(8)
    mine, one = run(calls=4)
    its, other = run(calls=4, model=eight)
    assert all(leaf.sharding.num_devices == 8 for leaf in jax.tree.leaves(its.trainable))
    feed = next(feeds_of(model=eight))
    assert len(feed.batch.tokens.sharding.device_set) == 8
    assert not feed.batch.tokens.sharding.is_fully_replicated
    np.testing.assert_allclose(one[0].gradient_norm, other[0].gradient_norm, rtol=1e-5)
    for a, b in zip(one, other, strict=True):
        for left, right in zip(a.means, b.means, strict=True):
            np.testing.assert_allclose(left.compute(), right.compute(), rtol=1e-4)
            assert int(left.count) == int(right.count)
    for (path, a), (_, b) in zip(
        trees.leaves(merged(mine)), trees.leaves(merged(its)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=path)


def test_every_loss_is_the_same_on_one_device_as_on_eight():
    names = [name for name in LOSSES if name not in ("attention", "mlm")]
    every = replace(ALL, terms=tuple(Term(name, 0.5) for name in names))
    _, [one] = run(every, calls=1, steps=1)
    _, [other] = run(every, calls=1, steps=1, model=make_model(8))
    assert 0 < float(one.gradient_norm) < np.inf
    np.testing.assert_allclose(one.gradient_norm, other.gradient_norm, rtol=1e-4)
    for name, left, right in zip(names, one.means, other.means, strict=True):
        assert int(left.count) == int(right.count) > 0, name
        np.testing.assert_allclose(left.total, right.total, rtol=1e-4, err_msg=name)


def test_the_state_is_donated_and_nothing_else():
    params = replicate(make_params(), MODEL.mesh)
    stage = D42[2]
    state, h = start(stage, params=params)
    arrays = replicate(Teacher().arrays, MODEL.mesh)
    feed = next(feeds_of())
    after, _ = train_call(MODEL, stage.program)(state, arrays, feed, h)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.trainable, state.opt_state)))
    kept = jax.tree.leaves((params, arrays, feed, h, after))
    assert not any(leaf.is_deleted() for leaf in kept)


def test_equal_models_share_one_function():
    program = Program(("ce",), ("head",), "cosine")
    assert train_call(make_model(), program) is train_call(make_model(), program)
    assert train_call(make_model(8), program) is not train_call(make_model(), program)
