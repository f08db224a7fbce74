"""The graph gives the JAX student's logits, whatever the batch, its lengths and its padding."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy.test_transformer import OWN
from tests.deploy.test_transformer import SPECS as ENCODERS
from tests.deploy.toys import save_toy, toy_params, toy_spec
from xdistil_jax import trees
from xdistil_jax.deploy.bundle import BundleError, load_bundle
from xdistil_jax.deploy.onnx import build_graph
from xdistil_jax.deploy.runtime import Runtime
from xdistil_jax.deploy.words import LOGITS
from xdistil_jax.labels import ClassSet
from xdistil_jax.models.functional import build
from xdistil_jax.models.transformer import TransformerSpec

CLASSES = ClassSet(("bad", "good", "so-so", "x", "y"))
SPECS = {
    **{
        f"{projection}-{head}": toy_spec(projection=projection, head_on=head)
        for projection in ("gelu", "linear")
        for head in ("projection", "bilstm")
    },
    "last": toy_spec(pool="last"),
    "max": toy_spec(pool="max"),
    "max-linear": toy_spec(pool="max", projection="linear"),
    **{name: TransformerSpec(each, imitates=()) for name, each in ENCODERS.items()},
}
SEPARATOR = ENCODERS["pairs"].separator


def saved(folder, spec):
    """(bundle, parameters) of a student of ``spec``."""
    if isinstance(spec, TransformerSpec):
        # Of the toy's size, weights would make of a rounding error 100 times as much.
        params = jax.tree.map(lambda leaf: 0.5 * leaf, toy_params(spec, seed=1))
        save_toy(folder, spec, kind="transformer", weights=dict(trees.leaves(params)))
        return load_bundle(folder), params
    pooled = {"tagset": CLASSES} if spec.pool != "none" else {}
    params = save_toy(folder, spec, seed=1, **pooled)
    return load_bundle(folder), params


def export(bundle, path):
    onnx.save(build_graph(bundle), path)
    return Runtime(path, threads=1)


@pytest.fixture(scope="module", params=SPECS.values(), ids=SPECS)
def student(request, tmp_path_factory):
    """(spec, bundle, parameters, runtime)"""
    folder = tmp_path_factory.mktemp("onnx")
    bundle, params = saved(folder / "student", request.param)
    return request.param, bundle, params, export(bundle, folder / "model.onnx")


def batch(rows, width, seed=0):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, OWN.vocab_size, (rows, width))
    lengths = random.integers(0, width + 1, rows)
    lengths[0] = width
    tokens[:, width // 3] = SEPARATOR
    return tokens, lengths


def real_of(tokens, lengths):
    return np.arange(tokens.shape[1]) < lengths[:, None]


def jax_logits(spec, params, tokens, lengths):
    with jax.default_matmul_precision("highest"):
        return np.asarray(
            jax.jit(build(spec).apply)(params, jnp.asarray(tokens), jnp.asarray(lengths)).logits
        )


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (40, 12)])
def test_logits_equal_the_jax_student(student, rows, width):
    spec, _, params, runtime = student
    tokens, lengths = batch(rows, width)
    ours, theirs = runtime.logits(tokens, lengths), jax_logits(spec, params, tokens, lengths)
    real = real_of(tokens, lengths)
    assert (ours.dtype, ours.shape) == (np.float32, theirs.shape)
    assert np.ptp(ours[real]) > 0.1
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=9), st.integers(0, 2**32 - 1))
def test_logits_equal_the_numpy_student_for_any_lengths(student, lengths, seed):
    """Rows without a piece among them; and longer than any that was traced: nothing is."""
    _, bundle, _, runtime = student
    lengths = np.array(lengths)
    tokens, _ = batch(len(lengths), max(lengths.max(), 1), seed)
    ours, theirs = runtime.logits(tokens, lengths), LOGITS[bundle.kind](bundle, tokens, lengths)
    real = real_of(tokens, lengths)
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4, rtol=0)


def test_what_stands_in_the_padding_changes_no_real_logit(student):
    tokens, lengths = batch(6, 12)
    runtime, real = student[-1], real_of(tokens, lengths)
    other = np.where(real, tokens, batch(6, 12, seed=5)[0])
    assert (other != tokens).any()
    ours = runtime.logits(tokens, lengths)
    np.testing.assert_array_equal(ours[real], runtime.logits(other, lengths)[real])
    shorter = tokens[1:2, : lengths[1]]
    alone = runtime.logits(shorter, lengths[1:2])
    np.testing.assert_allclose(alone[0], ours[1, : lengths[1]], atol=1e-5, rtol=0)


def test_nothing_gives_nothing(student):
    _, bundle, _, runtime = student
    for shape in ((0, 5), (3, 0)):
        nothing = runtime.logits(np.zeros(shape, int), np.zeros(shape[0], int))
        assert nothing.shape == (*shape, len(bundle.tagset))


def test_the_lstm_is_onnxs_own_and_both_ways(tmp_path):
    model = build_graph(saved(tmp_path / "s", toy_spec())[0])
    (node,) = [node for node in model.graph.node if node.op_type == "LSTM"]
    assert {each.name: each for each in node.attribute}["direction"].s == b"bidirectional"
    assert not {node.op_type for node in model.graph.node} & {"Scan", "Loop", "If"}
    assert {node.domain for node in model.graph.node} == {""}


def test_a_head_on_the_states_carries_no_projection(tmp_path):
    for name, changes in (("a", {"head_on": "bilstm"}), ("b", {"projection": "linear"})):
        model = build_graph(saved(tmp_path / name, toy_spec(**changes))[0])
        assert [node.op_type for node in model.graph.node].count("MatMul") == 1


def test_another_kind_is_named(tmp_path):
    bundle, _ = saved(tmp_path / "s", toy_spec())
    with pytest.raises(BundleError, match=r"kind 'cnn': this version exports bilstm, transformer"):
        build_graph(replace(bundle, kind="cnn"))
