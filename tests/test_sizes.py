"""Sizes by arithmetic: parameters are those of the models, FLOPs are XLA's."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from xdistil_jax.counting import student_sizes
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import abstract_params, build
from xdistil_jax.models.transformer import TransformerSpec
from xdistil_jax.sizes import BiLSTMSizes, TeacherSizes
from xdistil_jax.trees import assign, leaves, matches, unflatten

BILSTM = BiLSTMSpec(100, embed=64, hidden=128, teacher_width=192, classes=32, dropout=0.0)
# Wide, for norms, activations and softmax are not counted, and shrink beside wide products.
ENCODER = EncoderSpec(
    100, 1024, 2, 4, 1024, positions=512, token_types=0, classes=512, dropout=0.0, stacked=False
)
TRANSFORMER = TransformerSpec(ENCODER, 1536, ("layer_6",))
ALIGNED = replace(TRANSFORMER, imitates=("layer_6", "layer_5", "layer_4"))


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def counted(spec, trained, rows, length, *, logits, states):
    """XLA's FLOPs of a step: of the parameters in the groups ``trained``."""
    functional = build(spec)
    params = dict(leaves(abstract_params(spec)))
    moved = {p for p in params if any(matches(group, p) for group in trained)}

    def loss(moved, frozen):
        batch = jnp.zeros((rows, length), jnp.int32), jnp.full(rows, length, jnp.int32)
        output = functional.apply(unflatten({**moved, **frozen}), *batch)
        read = [output.logits] * logits + [*output.hidden.values()] * states
        return sum((each**2).sum() for each in read)

    parts = ({p: params[p] for p in moved}, {p: params[p] for p in set(params) - moved})
    return flops(jax.value_and_grad(loss) if moved else loss, *parts)


@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize(
    ("change", "logits", "states"),
    [
        ({}, True, False),
        ({"source_width": 96}, True, False),
        ({"head_on": "bilstm"}, True, False),
        ({"also": ("layer_5", "layer_4")}, True, True),
        ({"also": ("layer_5",)}, False, True),
    ],
)
def test_a_bilstms_step_costs_what_xla_counts(change, logits, states, depth):
    """With rows of one piece: the body of a scan is counted once, however often it runs."""
    spec = replace(BILSTM, **change)
    # What no loss reads has no gradient; then the steps of unfreezing leave it out.
    read = {"head": logits, "projection": states or spec.head_on == "projection"}
    trained = frozenset(group for group in spec.groups[:depth] if read.get(group, True))
    own = student_sizes(spec).step(trained, 1, logits=logits, states=states)
    found = counted(spec, trained, 64, 1, logits=logits, states=states)
    assert found == pytest.approx(64 * own, rel=0.03)


@pytest.mark.parametrize("trained", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(
    ("spec", "length", "logits", "states"),
    [
        (TRANSFORMER, 8, True, False),
        (TRANSFORMER, 512, True, False),
        (TRANSFORMER, 8, True, True),
        (ALIGNED, 8, False, True),
        (replace(TRANSFORMER, source_width=1280), 8, True, False),
        (replace(TRANSFORMER, encoder=replace(ENCODER, embedding_width=512)), 8, True, False),
        (replace(TRANSFORMER, encoder=replace(ENCODER, pooler=True)), 8, True, False),
    ],
    ids=["logits", "wide", "both", "aligned", "source", "embedding", "pooler"],
)
def test_a_transformers_step_costs_what_xla_counts(spec, length, logits, states, trained):
    read = {"head": logits, "projection": states}
    groups = [group for group in spec.groups if read.get(group, True)]
    chosen = frozenset(groups[:trained])
    own = student_sizes(spec).step(chosen, length, logits=logits, states=states)
    found = counted(spec, chosen, 4, length, logits=logits, states=states)
    assert found == pytest.approx(4 * length * own, rel=0.02)
    assert student_sizes(spec).groups == spec.groups


def test_what_is_read_by_no_loss_costs_nothing():
    sizes = student_sizes(ALIGNED)
    whole = sizes.step(frozenset(), 8, logits=True, states=True)
    assert whole - sizes.step(frozenset(), 8, states=True, logits=False) == 2 * 1024 * 512
    assert whole - sizes.step(frozenset(), 8) == 3 * 2 * 1024 * 1536
    bilstm = student_sizes(replace(BILSTM, head_on="bilstm"))
    whole = bilstm.step(frozenset(), 8, states=True)
    assert whole - bilstm.step(frozenset(), 8) == 2 * 256 * 192


@pytest.mark.parametrize("length", [8, 64])
def test_a_teachers_pass_costs_what_xla_counts(length):
    spec = EncoderSpec(100, 256, 2, 4, 1024, positions=64, classes=9, stacked=False)
    functional = build(spec)
    batch = jnp.zeros((4, length), jnp.int32), jnp.full(4, length, jnp.int32)
    found = flops(lambda params: functional.apply(params, *batch).logits, abstract_params(spec))
    assert found == pytest.approx(
        4 * length * TeacherSizes("t", 100, 256, 2, 1024).forward(9, length), rel=0.06
    )


def test_a_teachers_parameters_are_those_of_its_spec():
    spec = EncoderSpec(5000, 256, 3, 4, 1024, positions=64, classes=9)
    found = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(spec)))
    assert TeacherSizes("t", 5000, 256, 3, 1024).parameters == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize(
    "spec",
    [
        BILSTM,
        replace(BILSTM, head_on="bilstm", also=("layer_2", "embedding")),
        replace(BILSTM, source_width=96),
        TRANSFORMER,
        ALIGNED,
        replace(TRANSFORMER, teacher_width=1024),
        replace(TRANSFORMER, imitates=()),
        replace(TRANSFORMER, source_width=96, encoder=replace(ENCODER, token_types=2)),
        replace(ALIGNED, encoder=replace(ENCODER, embedding_width=128, layers=3, feed_forward=96)),
        replace(TRANSFORMER, encoder=replace(ENCODER, pre_norm=True, pooler=True, vocab_size=77)),
    ],
    ids=str,
)
def test_parameters_of_each_group_are_those_of_the_spec(spec):
    params = abstract_params(spec)
    # The teacher's table, which a factored embedding reads, is never trained.
    params.pop("source", None)
    sizes = student_sizes(spec)
    owner = assign(params, spec.groups)
    found = dict.fromkeys(spec.groups, 0)
    for path, leaf in leaves(params):
        found[owner[path]] += math.prod(leaf.shape)
    assert sizes.parameters() == found
    assert tuple(sizes.parameters()) == sizes.groups == spec.groups


def test_where_the_head_reads_the_bilstm_its_input_is_not_the_projection():
    sizes = BiLSTMSizes(100, 64, 128, 192, 32, head_on="bilstm")
    both, forward = frozenset({"head", "projection"}), sizes.step(frozenset(), 1, states=True)
    # Forward, and the gradients of both weights: nothing below is trained.
    extra = 2 * (32 * 256 + 2 * 128 * 192)
    assert sizes.step(both, 1, states=True) == forward + extra
    # The inputs of both, and both gradients of the recurrence.
    extra += 2 * 2 * 8 * 128 * (64 + 128)
    assert sizes.step(frozenset({"bilstm"}), 1, states=True) == forward + extra
