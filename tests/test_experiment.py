"""An experiment is a value: it survives JSON, and its hash changes with what counts."""

import dataclasses
import json
import os
import subprocess
import sys
import typing

import pytest

from xdistil_jax.configs import RunConfig, StudentConfig, TeacherConfig, student_config
from xdistil_jax.data.corpus import DataSpec
from xdistil_jax.distill.stages import Schedule, Stage, StopRule, Term
from xdistil_jax.distill.strategies import PUBLISHED, Recipe, Tuning, strategies
from xdistil_jax.experiment import Experiment, hash8, restore, settings
from xdistil_jax.quickstart import experiment as quickstart

OWN_STAGES = (
    Stage("one", (Term("repr_kl", 2.0), Term("ce")), ("head", "bilstm/kernel"), 0.25),
    Stage(
        "two",
        (Term("ce"),),
        ("*",),
        1.0,
        Schedule(decay="restarts", every="epoch"),
        StopRule(0.5),
        carry=True,
        fresh=("head", "bilstm/bias"),
    ),
)
EXPERIMENTS = [
    Experiment(),
    quickstart("D4.2", out="elsewhere", seed=3),
    Experiment(
        name="own",
        strategy="D1",
        data=DataSpec(
            root="data",
            unlabelled=("a.txt", "b.txt"),
            languages=("de", "vi"),
            tag_map=(("MISC", "O"), ("GPE", "LOC")),
            train_limit=5,
        ),
        teacher=TeacherConfig(checkpoint="bert", cache="3f2a", recipe=Recipe(Schedule(peak=0.1))),
        student=StudentConfig(embed=7, projection="linear"),
        tuning=Tuning(
            repr_loss="repr_kl",
            gamma=10.0,
            unfreezing="bottom_up",
            fresh_head=True,
            ce=Recipe(PUBLISHED["bilstm"]),
        ),
        run=RunConfig(out="x", save_every_s=1.0, latency=False, precision="bfloat16"),
    ),
    Experiment(stages=OWN_STAGES),
]
# Where and how to work.
WITHOUT_EFFECT = {
    *("name", "run.out", "run.save_every_s", "run.keep_checkpoints", "run.heartbeat_s"),
    "run.stop_after_s",
    *("run.placement", "run.latency"),
    *("teacher.cache", "teacher.min_f1", "teacher.tensor_parallel"),
}


def without_effect(experiment):
    """The experiment with the fields that ``settings`` leaves out at their defaults."""
    plain, run = Experiment(), RunConfig()
    return dataclasses.replace(
        experiment,
        name=plain.name,
        teacher=dataclasses.replace(experiment.teacher, cache=plain.teacher.cache),
        run=dataclasses.replace(
            experiment.run, out=run.out, save_every_s=run.save_every_s, latency=run.latency
        ),
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: f"{e.name}-{e.strategy}")
def test_comes_back_from_json(experiment):
    written = json.dumps(settings(experiment), allow_nan=False)
    found = restore(json.loads(written))
    assert found == without_effect(experiment)
    assert settings(found) == settings(experiment)
    assert found.plan() == experiment.plan()
    # Tuples, not lists: a spec has to be hashable.
    assert hash(found) == hash(without_effect(experiment))


def test_a_field_of_another_version_is_named():
    record = settings(Experiment())
    record["student"]["depth"] = 3
    with pytest.raises(ValueError, match=r"StudentConfig has no depth.*another version"):
        restore(record)


def other(value, hint):
    """A value of the same type that differs."""
    if typing.get_origin(hint) is typing.Literal:
        return next(each for each in typing.get_args(hint) if each != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, tuple):
        return (*value, "x")
    assert value is None
    return OWN_STAGES if "Stage" in str(hint) else 7


def changed_fields(value, prefix=""):
    """(path, the value with that one field changed) for every field, however deep."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(inner):
            for below, new in changed_fields(inner, f"{path}."):
                yield below, dataclasses.replace(value, **{field.name: new})
        else:
            new = other(inner, hints[field.name])
            yield path, dataclasses.replace(value, **{field.name: new})


def test_the_hash_changes_with_every_field_but_those_without_effect():
    plain = Experiment()
    hashes = {path: hash8(changed) for path, changed in changed_fields(plain)}
    assert hashes.keys() >= WITHOUT_EFFECT
    assert len(hashes) > 70
    assert {path for path, found in hashes.items() if found == hash8(plain)} == WITHOUT_EFFECT
    effective = [found for path, found in hashes.items() if path not in WITHOUT_EFFECT]
    assert len(set(effective)) == len(effective)


def test_a_choice_that_came_later_leaves_hashes_as_they_were():
    assert "whole_vocabulary" not in settings(TeacherConfig())
    chosen = TeacherConfig(whole_vocabulary=True)
    assert settings(chosen)["whole_vocabulary"] is True
    assert restore(settings(chosen), TeacherConfig) == chosen


def test_the_hash_covers_the_fields_of_a_stage():
    plain = OWN_STAGES[0]
    changes = [
        ("name", "x"), ("terms", (Term("ce"),)), ("trainable", ("head",)),
        ("labelled_fraction", 0.5), ("carry", True), ("schedule", Schedule(peak=2.0)),
        ("fresh", ("head",)),
    ]  # fmt: skip
    hashes = {hash8([dataclasses.replace(plain, **{name: new})]) for name, new in changes}
    assert len(hashes | {hash8([plain])}) == len(changes) + 1


def test_the_hash_is_eight_digits_and_depends_on_order():
    assert len(hash8("a")) == 8
    assert int(hash8("a"), 16) >= 0
    assert hash8("a", "b") != hash8("b", "a") != hash8("ab")
    assert hash8({"a": 1, "b": 2}) == hash8({"b": 2, "a": 1})


def test_the_hash_is_the_same_in_every_process():
    code = (
        "from xdistil_jax.quickstart import experiment\n"
        "from xdistil_jax.experiment import hash8\n"
        "print(hash8(experiment('D4.2', seed=3), experiment('D1').plan()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "17")
    }
    assert found == {hash8(quickstart("D4.2", seed=3), quickstart("D1").plan())}


@pytest.mark.parametrize(("name", "near"), [("d4.3", "d4.2"), ("D3", "d3.1"), ("ce", "logit-ce")])
def test_an_unknown_strategy_is_answered_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"unknown strategy '{name}': did you mean.*{near}"):
        Experiment(strategy=name).plan()


@pytest.mark.parametrize(("name", "near"), [("tiney", "tiny"), ("BASE", "base"), ("smal", "small")])
def test_an_unknown_student_is_answered_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"'{name}': did you mean {near}\\?"):
        student_config(name)
    assert isinstance(student_config(near), StudentConfig)


def test_strategies_are_found_in_either_case():
    assert Experiment(strategy="d4.2").plan() == Experiment().plan()


def test_own_stages_go_before_the_strategy():
    assert Experiment(strategy="no such", stages=OWN_STAGES).plan() == OWN_STAGES


def test_runs_lie_below_out_by_name(tmp_path):
    chosen = Experiment(name="mine", run=RunConfig(out=str(tmp_path)))
    assert chosen.folder() == tmp_path / "mine"


@pytest.mark.parametrize("name", strategies(("head", "body")))
def test_a_frozen_embedding_is_in_no_stage_of_any_strategy(name):
    plain = Experiment(strategy=name)
    frozen = dataclasses.replace(plain, student=StudentConfig(freeze_embedding=True))
    assert any("embed" in stage.trainable for stage in plain.plan())
    assert not any("embed" in stage.trainable for stage in frozen.plan())
    # Where layers are unfrozen one by one, the step of the table goes; the others are the same.
    kept = [each.name for each in plain.plan() if not each.name.endswith("/embed")]
    assert [each.name for each in frozen.plan()] == kept
    last = [each for each in frozen.plan() if each.name.endswith("/bilstm")]
    assert {each.stop for each in last} <= {each.stop for each in plain.plan()}
    assert all(each.stop.epochs == plain.tuning.logit.stop.epochs for each in last)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"vectors": "x.vec"}, "student.embedding is 'svd' and student.vectors 'x.vec'"),
        ({"embedding": "vectors"}, "expected a file together with 'vectors'"),
        ({"embedding": "projected", "freeze_embedding": True}, "student.freeze_embedding is set"),
        ({"embedding": "ppa", "removed_directions": 50}, "student.removed_directions is 50: .* 50"),
        ({"embedding": "ppa", "removed_directions": -1}, "student.removed_directions is -1"),
    ],
)
def test_choices_about_the_embedding_that_contradict_are_said(student, said):
    with pytest.raises(ValueError, match=said):
        Experiment(student=StudentConfig(**student)).plan()


def test_stages_of_ones_own_freeze_by_themselves():
    student = StudentConfig(freeze_embedding=True)
    with pytest.raises(ValueError, match=r"student.freeze_embedding is for a strategy"):
        Experiment(stages=OWN_STAGES, student=student).plan()
