"""The arithmetic of an estimate: its FLOPs are XLA's, its bytes the codecs', its hours by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from xdistil_jax.chips import read_chip
from xdistil_jax.configs import RunConfig, TeacherConfig
from xdistil_jax.distill.stages import Schedule, Stage, StopRule, Term
from xdistil_jax.distill.strategies import Recipe
from xdistil_jax.estimate import (
    CODECS,
    Counts,
    StudentSizes,
    TeacherSizes,
    Text,
    estimate,
    stage_slots,
    trained_groups,
)
from xdistil_jax.experiment import Experiment
from xdistil_jax.models.bilstm import BiLSTMSpec, parameter_count
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.teacher.codec import LOGITS, find_codec
from xdistil_jax.trees import leaves, matches, unflatten

GROUPS = ("head", "projection", "bilstm", "embed")


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("source_width", [0, 96])
@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4])
def test_a_students_step_costs_what_xla_counts(depth, source_width):
    """With rows of one piece: the body of a scan is counted once, however often it runs."""
    spec = BiLSTMSpec(
        100, embed=64, hidden=128, teacher_width=192, classes=32, dropout=0.0,
        source_width=source_width,
    )  # fmt: skip
    functional, rows = build(spec), 64
    params = dict(leaves(functional.init(jax.random.key(0))))
    trained = {p for p in params if any(matches(group, p) for group in GROUPS[:depth])}

    def loss(trained, frozen):
        batch = jnp.zeros((rows, 1), jnp.int32), jnp.ones(rows, jnp.int32)
        output = functional.apply(unflatten({**trained, **frozen}), *batch)
        return (output.logits**2).sum()

    parts = ({p: params[p] for p in trained}, {p: params[p] for p in set(params) - trained})
    counted = flops(jax.grad(loss) if depth else loss, *parts)
    sizes = StudentSizes(100, 64, 128, 192, 32, source_width=source_width)
    assert sizes.step(frozenset()) == sizes.forward()
    assert counted == pytest.approx(rows * sizes.step(frozenset(GROUPS[:depth])), rel=0.03)


@pytest.mark.parametrize("length", [8, 64])
def test_a_teachers_pass_costs_what_xla_counts(length):
    spec = EncoderSpec(100, 256, 2, 4, 1024, positions=64, classes=9, stacked=False)
    functional = build(spec)
    params = functional.init(jax.random.key(0))
    batch = jnp.zeros((4, length), jnp.int32), jnp.full(4, length, jnp.int32)
    counted = flops(lambda params: functional.apply(params, *batch).logits, params)
    # The rest are norms, activations and softmax, which shrink beside wider products.
    assert counted == pytest.approx(
        4 * length * TeacherSizes("t", 100, 256, 2, 1024).forward(9, length), rel=0.06
    )


def test_a_teachers_parameters_are_those_of_its_spec():
    spec = EncoderSpec(5000, 256, 3, 4, 1024, positions=64, classes=9)
    leaves_ = jax.tree.leaves(jax.eval_shape(build(spec).init, jax.random.key(0)))
    counted = sum(leaf.size for leaf in leaves_)
    assert TeacherSizes("t", 5000, 256, 3, 1024).parameters == pytest.approx(counted, rel=0.02)


def test_a_students_parameters_are_those_of_its_spec():
    spec = BiLSTMSpec(5000, embed=30, hidden=40, teacher_width=50, classes=9)
    sizes = StudentSizes(5000, 30, 40, 50, 9)
    assert sum(sizes.parameters().values()) == parameter_count(spec)
    other = replace(sizes, head_on="bilstm")
    assert sum(other.parameters().values()) == parameter_count(replace(spec, head_on="bilstm"))


def test_where_the_head_reads_the_bilstm_its_input_is_not_the_projection():
    sizes = StudentSizes(100, 64, 128, 192, 32, head_on="bilstm")
    both = frozenset({"head", "projection"})
    # Forward, and the gradients of both weights: nothing below is trained.
    extra = 2 * (32 * 256 + 2 * 128 * 192)
    assert sizes.step(both) == sizes.forward() + extra
    # The inputs of both, and both gradients of the recurrence.
    extra += 2 * 2 * 8 * 128 * (64 + 128)
    assert sizes.step(frozenset({"bilstm"})) == sizes.forward() + extra


def test_bytes_a_token_are_the_codecs():
    assert {name: size(768) for name, size in CODECS.items()} == {
        "bf16": 1536, "int8": 770, "pca-256": 258, "pca-128": 130, "pca-64": 66, "logits only": 0
    }  # fmt: skip
    assert CODECS["pca-256"](100) == 102
    for name in CODECS.keys() - {"logits only"}:
        codec = find_codec(name)
        assert CODECS[name](768) == codec.numbers.bytes_per_token(codec.kept or 768)
    assert LOGITS.bytes_per_token(11) == 22


def stage(share=0.0, epochs=2.0, min_steps=0, trainable=GROUPS):
    return Stage(
        "s", (Term("logit"),), trainable, share, stop=StopRule(epochs=epochs, min_steps=min_steps)
    )


def counts(train=1000, transfer=8000, distinct=5000):
    texts = (Text(10, n, 2 * n, 16.0) for n in (train, transfer, distinct))
    return Counts(*texts, vocab=500, classes=11, how="counted")


def test_slots_of_a_stage():
    assert stage_slots(stage(), counts(), 100) == 2 * 16000
    assert stage_slots(stage(1.0), counts(), 100) == 2 * 2000
    assert stage_slots(stage(0.5), counts(), 100) == 2 * 32000
    assert stage_slots(stage(1.0, min_steps=90), counts(), 100) == 9000
    assert [stage(share).taught for share in (0.0, 0.5, 1.0)] == [True, True, False]


def test_groups_of_a_stage():
    assert trained_groups(stage(trainable=("head", "bilstm"))) == {"head", "bilstm"}
    assert trained_groups(stage(trainable=("h*", "embed/table"))) == {"head", "embed"}
    assert trained_groups(stage(trainable=("source/table",))) == set(GROUPS)


CHIP = replace(read_chip("v5e"), flops=1e9, encoder_utilisation=0.5, student_utilisation=0.25)
TEACHER = TeacherSizes("big", 1000, 64, 2, 256, fine_tuned=False)
STUDENT = StudentSizes(500, 8, 8, 64, 11)


def made(stages, teachers=(TEACHER,), chips=1, chip=CHIP, text=None, recipe=None):
    config = TeacherConfig(token_budget=100, recipe=recipe or Recipe())
    experiment = Experiment(stages=stages, teacher=config, run=RunConfig(token_budget=100))
    return estimate(experiment, text or counts(), teachers, STUDENT, chip, chips)


def test_hours_are_flops_by_the_assumed_rate():
    found = made((stage(),))
    cache, student = found.phases
    assert (cache.name, student.name) == ("cache", "1 s")
    assert cache.slots == 10000
    assert cache.flops == 10000 * TEACHER.forward(11, 16.0)
    assert cache.chip_hours == pytest.approx(cache.flops / 0.5e9 / 3600)
    assert student.flops == 32000 * STUDENT.step(frozenset(GROUPS))
    assert student.chip_hours == pytest.approx(student.flops / 0.25e9 / 3600)
    assert found.cache_bytes["bf16"] == 5000 * (128 + 22)
    assert found.cache_bytes["logits only"] == 5000 * 22
    three = made((stage(),), teachers=(replace(TEACHER, cached=3),))
    assert three.cache_bytes["bf16"] == 5000 * (3 * 128 + 22)


def test_a_teacher_that_is_fine_tuned_costs_three_passes():
    recipe = Recipe(Schedule(), StopRule(epochs=5.0))
    found = made((stage(),), (replace(TEACHER, fine_tuned=True),), recipe=recipe)
    assert found.phases[0].name == "fine-tune big"
    assert found.phases[0].flops == 3 * 5 * 2000 * TEACHER.forward(11, 16.0)
    assert found.chip_bytes > made((stage(),)).chip_bytes


def test_parameters_that_every_chip_has_to_move_are_a_floor():
    slow = replace(CHIP, flops=1e18)
    one, eight = (made((stage(),), chips=n, chip=slow).phases[-1] for n in (1, 8))
    bytes_moved = 320 * 32 * sum(STUDENT.parameters().values())
    assert one.chip_hours == pytest.approx(bytes_moved / (slow.gb_per_s * 1e9) / 3600)
    assert eight.chip_hours == pytest.approx(8 * one.chip_hours)
    frozen = made((stage(trainable=("head",)),), chip=slow).phases[-1]
    assert frozen.chip_hours < one.chip_hours / 5


def test_the_cache_pays_from_the_student_on_whose_steps_would_cost_more():
    """A pass over 5,000 pieces; a student's stages read 16,000, 1,600 or none of them."""
    found = made((stage(epochs=1.0),))
    assert found.pays_from == 1
    rare = made((stage(epochs=0.1),))
    assert rare.inside == pytest.approx(found.inside / 10)
    assert rare.phases[0].chip_hours / rare.inside == pytest.approx(10000 / 1600)
    assert rare.pays_from == 7
    none = made((stage(1.0),))
    assert none.pays_from is None
    assert none.cache_bytes["bf16"] == 0
    assert [phase.name for phase in none.phases] == ["1 s"]


def test_several_teachers_are_added():
    two = made((stage(),), (TEACHER, TEACHER))
    assert two.phases[0].flops == 2 * made((stage(),)).phases[0].flops
    assert two.cache_bytes["int8"] == 5000 * 2 * (66 + 22)
