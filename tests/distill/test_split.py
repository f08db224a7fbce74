"""A teacher fine-tuned split over (data, model): the same numbers, a part on each device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.distill.toys import ONE, STORE, TAGS, VOCABULARY, make_sampler
from xdistil_jax import trees
from xdistil_jax.distill.feed import Feeder
from xdistil_jax.distill.rates import hparams
from xdistil_jax.distill.stages import Schedule, Stage, Term
from xdistil_jax.distill.state import Model, abstract_state, merged, place, start_state
from xdistil_jax.distill.step import train_call
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.sharding import make_mesh, replicate

SPEC = EncoderSpec(
    VOCABULARY, 16, 2, 4, 32, positions=8, token_types=0, classes=len(TAGS), dropout=0.0
)
STAGE = Stage("teacher", (Term("ce"),), SPEC.groups, 1.0, Schedule(peak=1e-3))


def train(model, calls=3):
    params = build(SPEC).init(jax.random.key(0))
    h = replicate(hparams(STAGE, 20), model.mesh)
    state = place(model, start_state(params, STAGE.program, jax.random.key(1), h))
    sampler, call = make_sampler(1.0, buckets=ONE), train_call(model, STAGE.program)
    feeder, metrics = Feeder(STORE, ONE, None, model.mesh, 4), []
    for _, each in zip(range(calls), sampler.calls(0, 4), strict=False):
        before = jax.tree.map(lambda leaf: leaf.sharding, state)
        state, now = call(state, (), feeder.feed(each, sampler.role(0))[0], h)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == before
        metrics.append(now)
    return state, metrics


@pytest.fixture(scope="module")
def split():
    return Model(SPEC, None, "float32", make_mesh(model=2), split=True)


def test_split_parameters_train_as_whole_ones(split):
    whole = Model(SPEC, None, "float32", make_mesh(jax.devices()[:1]))
    (mine, one), (its, other) = train(whole), train(split)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.gradient_norm, b.gradient_norm, rtol=1e-4)
        np.testing.assert_allclose(a.means[0].total, b.means[0].total, rtol=1e-4)
    for (path, a), (_, b) in zip(
        trees.leaves(merged(mine)), trees.leaves(merged(its)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=path)


def test_parameters_and_moments_lie_by_the_rules(split):
    state, _ = train(split, calls=1)
    adam = next(s for s in state.opt_state if isinstance(s, optax.ScaleByAdamState))
    for tree in (state.trainable, adam.mu, adam.nu):
        kernel = tree["layers"]["feed_forward"]["up"]["kernel"]
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 4, 16)}
    assert state.step.sharding.is_fully_replicated


def test_the_abstract_state_is_that_of_the_first_step(split):
    params = build(SPEC).init(jax.random.key(0))
    state = start_state(params, STAGE.program, jax.random.key(1), hparams(STAGE, 20))
    real, abstract = place(split, state), abstract_state(split, STAGE.program)
    told = [jax.tree.map(lambda a: (a.shape, a.dtype, a.sharding), t) for t in (real, abstract)]
    assert told[0] == told[1]
    assert jax.tree.leaves(abstract)[0].dtype == jnp.float32
