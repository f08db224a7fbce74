"""A student of whole texts: one state a row, projected and read by the head, blind to padding."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.test_bilstm import SPEC, forward, random_params
from xdistil_jax.models.bilstm import bilstm, pool_states
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.models.stack import second_text

POOLS = ("last", "max")
PARAMS = random_params(SPEC)
LENGTHS = np.array([7, 4, 1, 0])
TOKENS = np.random.default_rng(3).integers(0, SPEC.vocab_size, (4, 7))


def by_hand(states, length, pool):
    """One row's state, from its states [T 2H]."""
    half = states.shape[1] // 2
    if not length:
        return np.zeros(2 * half) if pool == "max" else states[0]
    if pool == "max":
        return states[:length].max(0)
    return np.concatenate([states[length - 1, :half], states[0, half:]])


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("head_on", ["projection", "bilstm"])
def test_outputs_equal_those_by_hand(pool, head_on):
    spec = replace(SPEC, pool=pool, head_on=head_on, projection="linear")
    params = random_params(spec)
    host = jax.tree.map(np.asarray, params)
    real = jnp.arange(7)[None] < LENGTHS[:, None]
    weights = (params["bilstm"][name] for name in ("kernel", "recurrent", "bias"))
    states = np.array(bilstm(params["embed"]["table"][TOKENS], real, *weights))
    states[:, 0] = [by_hand(*each, pool) for each in zip(states, LENGTHS, strict=True)]
    projected = states @ host["projection"]["kernel"] + host["projection"]["bias"]
    top = projected if head_on == "projection" else states
    wanted = top[:, 0] @ host["head"]["kernel"] + host["head"]["bias"]
    found = forward(params, TOKENS, LENGTHS, spec=spec)
    np.testing.assert_allclose(found.logits[:, 0], wanted, atol=1e-5)
    np.testing.assert_array_equal(found.logits[:, 1:], 0)
    assert found.logits.shape == (4, 7, SPEC.classes)
    np.testing.assert_allclose(found.hidden["layer_2"], projected, atol=1e-5)


@pytest.mark.parametrize("pool", POOLS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_padding_cannot_change_a_class(pool, seed):
    spec = replace(SPEC, pool=pool)
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 8, 4)
    real = np.arange(7) < lengths[:, None]
    other = np.where(real, TOKENS, rng.integers(0, SPEC.vocab_size, (4, 7)))
    first, second = (forward(PARAMS, each, lengths, spec=spec).logits for each in (TOKENS, other))
    np.testing.assert_array_equal(first, second)
    wide = np.pad(TOKENS, ((0, 0), (0, 3)), constant_values=5)
    padded = forward(PARAMS, wide, lengths, spec=spec).logits
    np.testing.assert_allclose(padded[:, :7], first, atol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_every_piece_is_heard_and_empty_rows_have_a_gradient(pool):
    spec = replace(SPEC, pool=pool, projection="linear")

    def summed(params):
        return forward(params, TOKENS, LENGTHS, spec=spec).logits.sum()

    gradient = jax.grad(summed)(PARAMS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    table = np.abs(gradient["embed"]["table"]).max(1)
    if pool == "last":
        assert (table[TOKENS[0]] > 0).all()
    states = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    real = np.array([[True] * 3 + [False] * 2, [False] * 5])
    found = pool_states(jnp.asarray(states), jnp.asarray(real), pool)
    np.testing.assert_array_equal(found[0], by_hand(states[0], 3, pool))


def test_the_second_text_is_of_the_second_type():
    sep = 3
    tokens = np.array([[2, 5, 6, sep, 7, sep, 0], [2, 5, 6, sep, 0, 0, 0]])
    wanted = np.array([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(second_text(jnp.asarray(tokens), sep), wanted)
    spec = EncoderSpec(11, 8, 1, 2, 16, positions=16, classes=2)
    params = build(spec).init(jax.random.key(0))
    params["embed"]["types"] = params["embed"]["types"] + np.arange(2)[:, None]
    lengths = jnp.array([6, 4])
    plain = build(spec).apply(params, tokens, lengths).logits
    given_types = build(spec).apply(params, tokens, lengths, jnp.asarray(wanted)).logits
    found = build(replace(spec, separator=sep)).apply(params, tokens, lengths).logits
    np.testing.assert_array_equal(found, given_types)
    assert np.abs(found - plain)[0].max() > 1e-3
    np.testing.assert_allclose(found[1, :4], plain[1, :4], atol=1e-6)
