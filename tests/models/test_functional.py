"""The seam: plain dicts of arrays, pure functions, the same objects for equal specs."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax import trees
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import abstract_params, build, dropout
from xdistil_jax.types import EncoderOutput, Mean

SPECS = [
    BiLSTMSpec(vocab_size=13, embed=4, hidden=3, teacher_width=6),
    EncoderSpec(13, 8, 2, 2, 16, positions=8, classes=3),
]
TOKENS = jnp.arange(10).reshape(2, 5)
LENGTHS = jnp.array([5, 2])


@pytest.fixture(params=SPECS, ids=lambda spec: type(spec).__name__)
def spec(request):
    return request.param


def test_equal_specs_are_one_model(spec):
    assert build(spec) is build(replace(spec))
    assert build(spec) is not build(replace(spec, dropout=0.31))
    assert hash(spec) == hash(replace(spec))


def test_parameters_are_a_plain_nested_dict_of_fp32_arrays(spec):
    params = build(spec).init(jax.random.key(0))
    assert set(map(type, _dicts(params))) == {dict}
    for path, leaf in trees.leaves(params):
        assert isinstance(leaf, jax.Array), path
        assert leaf.dtype == jnp.float32, path
        assert np.isfinite(leaf).all(), path
    assert {"head/kernel", "head/bias", "embed/table"} <= dict(trees.leaves(params)).keys()


def _dicts(tree):
    yield tree
    for value in tree.values():
        if not isinstance(value, jax.Array):
            yield from _dicts(value)


def test_abstract_params_have_the_shapes_of_real_ones(spec):
    shapes = {path: leaf.shape for path, leaf in trees.leaves(abstract_params(spec))}
    real = {p: leaf.shape for p, leaf in trees.leaves(build(spec).init(jax.random.key(0)))}
    assert shapes == real


def test_the_groups_cover_every_parameter_exactly_once(spec):
    found = trees.assign(abstract_params(spec), spec.groups)
    assert set(found.values()) == set(spec.groups)
    assert build(spec).groups == spec.groups


def test_init_is_a_function_of_the_key(spec):
    init = build(spec).init
    one, again, other = (dict(trees.leaves(init(jax.random.key(n)))) for n in (1, 1, 2))
    assert all((one[path] == again[path]).all() for path in one)
    assert any((one[path] != other[path]).any() for path in one)
    under_jit = dict(trees.leaves(jax.jit(init)(jax.random.key(1))))
    assert all(np.allclose(one[path], under_jit[path], atol=1e-6) for path in one)


def test_apply_is_pure_and_runs_under_jit(spec):
    functional = build(spec)
    params = functional.init(jax.random.key(0))
    before = jax.tree.map(np.array, params)
    first = functional.apply(params, TOKENS, LENGTHS)
    second = jax.jit(functional.apply)(params, TOKENS, LENGTHS)
    assert isinstance(first, EncoderOutput)
    assert first.logits.shape == (2, 5, spec.classes)
    np.testing.assert_allclose(first.logits, second.logits, atol=1e-5)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, params))


def test_apply_traces_once_for_equal_specs(spec):
    traces = []

    def count(params, tokens, lengths, *, spec):
        traces.append(spec)
        return build(spec).apply(params, tokens, lengths).logits

    call = jax.jit(count, static_argnames="spec")
    params = build(spec).init(jax.random.key(0))
    call(params, TOKENS, LENGTHS, spec=spec)
    call(params, TOKENS, LENGTHS, spec=replace(spec))
    assert len(traces) == 1


def test_a_module_may_hold_nothing_but_parameters(spec):
    """A counter or a statistic in the module would be state that the seam silently drops."""
    from flax import nnx

    state = nnx.state(spec.module(nnx.Rngs(0)))
    kinds = {type(leaf) for leaf in jax.tree.leaves(state, is_leaf=_is_variable)}
    assert kinds == {nnx.Param}


def _is_variable(value):
    from flax import nnx

    return isinstance(value, nnx.Variable)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_dropout_keeps_the_expectation_at_any_width(rate):
    x = jnp.ones((300, 7, 13))
    y = np.asarray(dropout(x, rate, jax.random.key(1)))
    assert y.shape == x.shape
    assert len(np.unique(y)) == 2
    assert abs((y == 0).mean() - rate) < 0.01
    # Unbiased to the last bit: what is kept is scaled by the share that is really kept.
    dropped = round(256 * rate) / 256
    np.testing.assert_allclose(y.max(), 1 / (1 - dropped), rtol=1e-6)
    # No element follows its neighbour.
    assert abs(np.corrcoef(y[..., :-1].ravel(), y[..., 1:].ravel())[0, 1]) < 0.03


def test_dropout_scales_what_it_keeps():
    x = jnp.full((200, 200), 3.0)
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(y)) == {0.0, 4.0}
    assert abs((y == 0).mean() - 0.25) < 0.01
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout(x.astype(jnp.bfloat16), 0.25, jax.random.key(0)).dtype == jnp.bfloat16


@dataclass(frozen=True)
class _Unhashable:
    sizes: list


def test_a_spec_that_is_no_value_is_refused():
    with pytest.raises(TypeError, match="unhashable"):
        build(_Unhashable([1]))


numbers = st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.booleans()), max_size=20)


@settings(deadline=None)
@given(numbers, numbers)
def test_merged_means_are_the_mean_of_the_union(left, right):
    one, other, union = (_mean(part) for part in (left, right, left + right))
    merged = one.merge(other)
    assert merged.count == union.count == sum(kept for _, kept in left + right)
    np.testing.assert_allclose(merged.compute(), union.compute(), rtol=1e-4, atol=1e-2)


def _mean(part):
    values = jnp.array([value for value, _ in part], jnp.float32)
    return Mean.of(values, jnp.array([kept for _, kept in part], bool))


def test_a_mean_looks_at_nothing_outside_its_mask():
    values = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
    mask = jnp.array([True, False, True, False])
    assert Mean.of(values, mask).compute() == 2.0
    # The gradient through a masked NaN is zero, too.
    grad = jax.grad(lambda x: Mean.of(x, mask).compute())(values)
    np.testing.assert_array_equal(grad, [0.5, 0, 0.5, 0])
    nothing = Mean.of(values, jnp.zeros(4, bool))
    assert nothing.compute() == 0.0
    assert Mean.of(values.astype(jnp.bfloat16), mask).total.dtype == jnp.float32
