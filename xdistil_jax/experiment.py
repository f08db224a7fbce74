"""Experiment = data + teacher + student + plan + run: all that a run needs, as frozen values.

``pipeline.run(experiment)`` does the work; every step of it is found again by the hash of what it
was made from, so a repeated or killed run goes on where it stopped.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from xdistil_jax import storage
from xdistil_jax.configs import EnsembleConfig, RunConfig, StudentConfig, TeacherConfig
from xdistil_jax.data.corpus import DataSpec
from xdistil_jax.distill.stages import Stage
from xdistil_jax.distill.strategies import PER_LANGUAGE, Tuning, plan, proper_name


@dataclass(frozen=True)
class Experiment:
    """All that a run needs. ``stages`` overrides the strategy with a plan of your own."""

    name: str = "experiment"
    strategy: str = "D4.2"
    data: DataSpec = DataSpec()
    teacher: TeacherConfig = TeacherConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    student: StudentConfig = StudentConfig()
    tuning: Tuning = Tuning()
    run: RunConfig = RunConfig()
    stages: tuple[Stage, ...] | None = None

    def plan(self, groups: tuple[str, ...] | None = None) -> tuple[Stage, ...]:
        """The stages that will run; ``groups`` are those of the student, where its spec is known.

        Raises:
            ValueError: for an unknown strategy, with the nearest names; for choices about the
                student's embedding that contradict each other, or about words where whole texts are
                classified.
        """
        groups = self.student.trained(groups or self.student.groups)
        stages = self.stages
        if stages is None:
            stages = plan(self.strategy, groups, self.tuning, self.student.states_only)
        elif self.student.freeze_embedding:
            raise ValueError(
                "student.freeze_embedding is for a strategy; stages of your own say themselves "
                "what they train: leave embed out there"
            )
        if self.data.task == "classification":
            _refuse_words(self, stages)
        return stages

    @property
    def is_per_language(self) -> bool:
        """Are the stages run once for each language?"""
        return self.stages is None and proper_name(self.strategy) in PER_LANGUAGE

    def folder(self) -> Path:
        """Where runs of this experiment lie on this machine."""
        return storage.local(self.run.out) / self.name


def _is_of_all(loss: str) -> bool:
    return loss.startswith("logit") and loss.endswith("_all")


def _refuse_words(experiment: Experiment, stages: tuple[Stage, ...]) -> None:
    """Refuse what is said of words, or of all pieces, where only the whole text has a class."""
    losses = {term.loss for stage in stages for term in stage.terms}
    teachers = (experiment.teacher, *experiment.ensemble.teachers)
    wrong = {
        "tuning.logit_loss ends in _all: take it without": any(map(_is_of_all, losses)),
        "student.pool is mean: take first": experiment.student.pool == "mean",
        "teacher.outputs is given: take a checkpoint": any(each.outputs for each in teachers),
    }
    for what, holds in wrong.items():
        if holds:
            field, _, cure = what.partition(": ")
            raise ValueError(
                f"{field}, which is about the words of a text, but data.task is classification, "
                f"where only the whole text has a class: {cure}"
            )


# What says where or how to work, and changes no number of the result.
_WITHOUT_EFFECT = {
    ("Experiment", "name"),
    ("RunConfig", "out"),
    ("RunConfig", "save_every_s"),
    ("RunConfig", "placement"),
    ("RunConfig", "keep_checkpoints"),
    ("RunConfig", "heartbeat_s"),
    ("RunConfig", "latency"),
    ("RunConfig", "stop_after_s"),
    ("TeacherConfig", "cache"),
    ("TeacherConfig", "min_f1"),
    ("TeacherConfig", "tensor_parallel"),
}
# Choices that came later: runs of before, which didn't have them, are still found by their hash.
_ADDED = {("TeacherConfig", "whole_vocabulary")}


def settings(value: Any) -> Any:
    """A configuration as JSON types, without what changes no result."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        of_fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        kind = type(value).__name__
        return {field.name: settings(of) for field, of in of_fields if _tells(kind, field, of)}
    if isinstance(value, tuple | list):
        return [settings(each) for each in value]
    if isinstance(value, dict):
        return {key: settings(each) for key, each in value.items()}
    return value


def _tells(kind: str, field: dataclasses.Field[Any], value: Any) -> bool:
    if (kind, field.name) in _ADDED:
        return bool(value != field.default)
    return (kind, field.name) not in _WITHOUT_EFFECT


def restore(record: Any, kind: Any = Experiment) -> Any:
    """The inverse of ``settings``; what was left out there gets its default.

    Raises:
        ValueError: for a field that this version doesn't have.
    """
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if unknown := record.keys() - hints.keys():
            raise ValueError(
                f"{kind.__name__} has no {', '.join(sorted(unknown))}: the configuration was "
                "written by another version of xdistil_jax"
            )
        return kind(**{name: restore(value, hints[name]) for name, value in record.items()})
    if get_origin(kind) in (Union, UnionType):
        inner = next(each for each in get_args(kind) if each is not type(None))
        return None if record is None else restore(record, inner)
    if get_origin(kind) is tuple:
        return tuple(restore(each, get_args(kind)[0]) for each in record)
    return record


def hash8(*values: Any) -> str:
    """Eight hex digits of the settings of ``values``."""
    content = json.dumps([settings(value) for value in values], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=4).hexdigest()


@dataclass(frozen=True)
class Result:
    """All that a run found.

    ``dev`` and ``test`` map ``"teacher"`` and ``"student"`` to ``report.metrics.Scores`` (F1 in
    percent) or ``report.classes.ClassScores``; ``test`` is None unless it was asked for. ``report``
    is report.json.
    """

    folder: Path
    report: dict[str, Any]
    dev: dict[str, Any]
    test: dict[str, Any] | None

    @property
    def dev_f1(self) -> float:
        """The student's mean F1 (or accuracy) over languages on the dev set, in percent."""
        return self.dev["student"].mean
