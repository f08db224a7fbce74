"""The state: split by the boolean tree, moments of what is trained alone, carried to the next."""

from dataclasses import replace
from itertools import islice

import jax
import numpy as np
import optax
import pytest

from tests.distill.toys import (
    GROUPS,
    ONE,
    Teacher,
    equal,
    make_feeds,
    make_model,
    make_params,
    make_sampler,
)
from xdistil_jax import trees
from xdistil_jax.distill.rates import hparams
from xdistil_jax.distill.state import merged, start_state
from xdistil_jax.distill.step import train_call
from xdistil_jax.distill.strategies import plan
from xdistil_jax.sharding import replicate

MODEL = make_model()
D42 = plan("D4.2", GROUPS)


def start(stage, params=None, carried=None):
    """(state, hyper-parameters), placed."""
    h = hparams(stage, 40)
    params = make_params() if params is None else params
    state = start_state(params, stage.program, jax.random.key(3), h, carried=carried)
    return replicate(state, MODEL.mesh), replicate(h, MODEL.mesh)


def feeds_of(stage):
    return make_feeds(MODEL, make_sampler(stage.labelled_fraction, buckets=ONE), steps=4)


def trained(stage):
    """The state after two calls."""
    state, h = start(stage)
    call, arrays = train_call(MODEL, stage.program), replicate(Teacher().arrays, MODEL.mesh)
    for feed in islice(feeds_of(stage), 2):
        state, _ = call(state, arrays, feed, h)
    return state


def adam(state):
    return next(s for s in state.opt_state if isinstance(s, optax.ScaleByAdamState))


@pytest.mark.parametrize("stage", D42[:3], ids=lambda stage: stage.name)
def test_frozen_leaves_have_no_moments(stage):
    state, _ = start(stage)
    mask = trees.mask(make_params(), stage.trainable)
    moving = [path for path, chosen in trees.leaves(mask) if chosen]
    for tree in (state.trainable, adam(state).mu, adam(state).nu):
        assert [path for path, _ in trees.leaves(tree)] == moving
    assert len(jax.tree.leaves(state.opt_state)) == 2 * len(moving) + 1
    assert [path for path, _ in trees.leaves(state.frozen)] == [
        path for path, chosen in trees.leaves(mask) if not chosen
    ]


def test_the_boolean_tree_is_what_partitions(monkeypatch):
    params = make_params()
    chosen = trees.mask(params, ("bilstm/bias", "head/kernel"))
    monkeypatch.setattr(trees, "mask", lambda tree, patterns: chosen)
    state, _ = start(D42[2])
    found = {path for path, _ in trees.leaves(state.trainable)}
    assert found == {"bilstm/bias", "head/kernel"}
    assert f"x {'bilstm/bias'}" in trees.describe(chosen).splitlines()
    assert equal(merged(state), params)


def test_a_pattern_that_matches_nothing_is_named():
    stage = replace(D42[2], trainable=("head", "bilstn"))
    with pytest.raises(trees.PatternError, match=r"pattern 'bilstn' .* did you mean bilstm"):
        start(stage)


def test_carry_keeps_the_moments_of_leaves_trained_before():
    narrow, wide = D42[1:3]
    before = trained(narrow)
    params, old = jax.tree.map(np.array, (merged(before), adam(before)))
    fresh, h = start(wide, params=params)
    carried, _ = start(wide, params=params, carried=before.opt_state)
    assert jax.tree.structure(fresh) == jax.tree.structure(carried)
    assert int(adam(carried).count) == int(old.count) == int(before.step) > 0
    assert int(adam(fresh).count) == int(carried.step) == 0
    for name in ("mu", "nu"):
        found = dict(trees.leaves(getattr(adam(carried), name)))
        known = dict(trees.leaves(getattr(old, name)))
        for path, leaf in found.items():
            assert equal(leaf, known.get(path, np.zeros_like(leaf)))
        assert any(np.any(leaf) for leaf in found.values())
        assert not any(np.any(leaf) for _, leaf in trees.leaves(getattr(adam(fresh), name)))
    arrays, feed = replicate(Teacher().arrays, MODEL.mesh), next(feeds_of(wide))
    call = train_call(MODEL, wide.program)
    assert not equal(
        call(carried, arrays, feed, h)[0].trainable, call(fresh, arrays, feed, h)[0].trainable
    )


def test_carry_forgets_leaves_that_are_frozen_now():
    before = trained(D42[2])
    carried, _ = start(D42[1], carried=before.opt_state)
    assert {path for path, _ in trees.leaves(adam(carried).mu)} == {"head/bias", "head/kernel"}
