"""Which states and attention of a teacher a student imitates."""

import dataclasses

import pytest

from tests.test_students import TAGS, TINY, TOKENIZER, sized
from xdistil_jax import Experiment, StudentConfig, Tuning
from xdistil_jax.alignment import Target, find_target, imitated_layers
from xdistil_jax.configs import TeacherConfig
from xdistil_jax.models.deberta import DebertaSpec
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.session import Ensemble, Trained

DEEP = EncoderSpec(50, 12, 4, 2, 16)


@pytest.mark.parametrize(
    ("teacher", "layers", "align", "expected"),
    [
        ({}, 2, "one", (4,)),
        ({"layer": 3}, 2, "one", (3,)),
        ({}, 2, "top", (4, 3, 2)),
        ({}, 4, "top", (4, 3, 2, 1, 0)),
        ({}, 9, "top", (4, 3, 2, 1, 0)),
        ({"layer": 3}, 1, "top", (3, 2)),
        ({"hidden_layers": (4, 1, 0)}, 2, "one", (4, 1, 0)),
    ],
)
def test_layers_are_aligned_from_the_top(teacher, layers, align, expected):
    config = dataclasses.replace(TINY, layers=layers, align=align)
    found = imitated_layers(TeacherConfig(**teacher), config, DEEP)
    assert found == tuple(DEEP.hidden_names[number] for number in expected)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ({"layer": 5}, TINY, "teacher.layer is 5; the teacher has layers 1 to 4"),
        ({"hidden_layers": (4, 5)}, TINY, "teacher.hidden_layers is 5; .*0: the embeddings"),
        ({"hidden_layers": (4, 4)}, TINY, "one is there twice"),
        ({}, StudentConfig(align="top"), "a BiLSTM imitates the layers that teacher.hidden_layers"),
        ({"hidden_layers": (4,)}, dataclasses.replace(TINY, align="top"), "without teacher.hidden"),
    ],
)
def test_layers_that_are_not_there_are_named(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        imitated_layers(TeacherConfig(**teacher), student, DEEP)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (StudentConfig(), "stage 'repr' needs attention, and a bilstm has none"),
        (TINY, "needs the teacher's attention, and deberta-v2 doesn't tell it"),
    ],
)
def test_attention_that_is_not_there_is_refused(student, message):
    spec = DebertaSpec(60, 16, 1, 2, 32, classes=2, family="deberta-v2")
    teacher = Trained(spec, {}, TOKENIZER, TAGS, 24, layers=("layer_1",))
    with pytest.raises(ValueError, match=message):
        find_target(Experiment(student=student, tuning=Tuning(attention=1.0)), teacher)
    assert find_target(Experiment(student=student), teacher) == Target(16, ("layer_1",))


def test_attention_comes_from_the_topmost_layers():
    teacher = Trained(DEEP, {}, TOKENIZER, TAGS, 24, layers=("layer_4",))
    experiment = Experiment(student=TINY, tuning=Tuning(attention=1.0))
    found = find_target(experiment, teacher)
    assert found.attends == ("layer_4", "layer_3")
    assert sized(TINY, found).attends == found.attends
    terms = {stage.name: [t.loss for t in stage.terms] for stage in experiment.plan()}
    assert terms["repr"] == ["repr", "attention"]
    assert terms["ce/head"] == ["ce"]
    both = Ensemble((teacher, teacher), {"": (0.5, 0.5)}, "x")
    with pytest.raises(ValueError, match="takes a single teacher that is a model"):
        find_target(experiment, both)
