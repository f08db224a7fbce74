"""The arithmetic of an estimate: its bytes are the codecs', its hours by hand."""

from dataclasses import replace

import pytest

from xdistil_jax.chips import read_chip
from xdistil_jax.configs import RunConfig, TeacherConfig
from xdistil_jax.distill.stages import Schedule, Stage, StopRule, Term
from xdistil_jax.distill.strategies import Recipe
from xdistil_jax.estimate import (
    CODECS,
    Counts,
    Text,
    estimate,
    stage_slots,
    stage_width,
    trained_groups,
)
from xdistil_jax.experiment import Experiment
from xdistil_jax.sizes import BiLSTMSizes, TeacherSizes, TransformerSizes
from xdistil_jax.teacher.codec import LOGITS, find_codec

GROUPS = ("head", "projection", "bilstm", "embed")


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


def test_rows_of_a_stage_are_as_wide_as_those_of_its_text():
    mixed = counts()._replace(train=Text(10, 1000, 2000, 8.0))
    assert [stage_width(stage(share), mixed) for share in (0.0, 0.25, 1.0)] == [16.0, 14.0, 8.0]


def test_groups_of_a_stage():
    def trained(*patterns, groups=GROUPS):
        return trained_groups(stage(trainable=patterns), groups)

    assert trained("head", "bilstm") == {"head", "bilstm"}
    assert trained("h*", "embed/table") == {"head", "embed"}
    assert trained("source/table") == set(GROUPS)
    assert trained("head", "layer_1", groups=TRANSFORMER.groups) == {"head", "layer_1"}
    assert trained("layer_*", groups=TRANSFORMER.groups) == {"layer_2", "layer_1"}


CHIP = replace(read_chip("v5e"), flops=1e9, encoder_utilisation=0.5, student_utilisation=0.25)
TEACHER = TeacherSizes("big", 1000, 64, 2, 256, fine_tuned=False)
STUDENT = BiLSTMSizes(500, 8, 8, 64, 11)
TRANSFORMER = TransformerSizes(500, 8, 2, 16, 64, 11, 32, imitated=3)


def made(stages, teachers=(TEACHER,), chips=1, chip=CHIP, text=None, recipe=None, student=STUDENT):
    config = TeacherConfig(token_budget=100, recipe=recipe or Recipe())
    experiment = Experiment(stages=stages, teacher=config, run=RunConfig(token_budget=100))
    return estimate(experiment, text or counts(), teachers, student, chip, chips)


def test_hours_are_flops_by_the_assumed_rate():
    found = made((stage(),))
    cache, student = found.phases
    assert (cache.name, student.name) == ("cache", "1 s")
    assert cache.slots == 10000
    assert cache.flops == 10000 * TEACHER.forward(11, 16.0)
    assert cache.chip_hours == pytest.approx(cache.flops / 0.5e9 / 3600)
    assert student.flops == 32000 * STUDENT.step(frozenset(GROUPS), 16.0)
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


def test_a_stage_costs_what_its_losses_read():
    groups = TRANSFORMER.groups
    of_states = replace(stage(trainable=groups[1:]), terms=(Term("repr"),))
    both = replace(stage(trainable=groups), terms=(Term("logit"), Term("repr_cosine")))
    tail = {"trainable": ("head", "layer_2")}
    found = made((of_states, both, stage(**tail)), student=TRANSFORMER).phases[1:]
    wanted = (
        TRANSFORMER.step(frozenset(groups[1:]), 16.0, logits=False, states=True),
        TRANSFORMER.step(frozenset(groups), 16.0, logits=True, states=True),
        TRANSFORMER.step(frozenset(tail["trainable"]), 16.0, logits=True, states=False),
    )
    assert [phase.flops for phase in found] == [32000 * each for each in wanted]


def test_attention_costs_the_teachers_pass_in_the_step():
    plain = replace(stage(trainable=TRANSFORMER.groups[1:]), terms=(Term("repr"),))
    attentive = replace(plain, terms=(Term("repr"), Term("attention")))
    one, other = (made((each,), student=TRANSFORMER) for each in (plain, attentive))
    extra = other.phases[-1].flops - one.phases[-1].flops
    assert extra == pytest.approx(32000 * TEACHER.forward(11, 16.0))
    hours = other.phases[-1].chip_hours - one.phases[-1].chip_hours
    assert hours == pytest.approx(extra / 0.5e9 / 3600)
    assert other.chip_bytes > one.chip_bytes
    assert other.phases[0] == one.phases[0], "the states still come from the cache"
