"""What decides the shapes of a run before any text or weight is read: its sizes and stages."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from xdistil_jax.alignment import Target, attended_layers, imitated_layers
from xdistil_jax.configs import TeacherConfig, student_config
from xdistil_jax.distill.stages import Stage
from xdistil_jax.experiment import Experiment
from xdistil_jax.finetune import split_mesh
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.families import AnySpec, read_spec
from xdistil_jax.models.functional import Spec
from xdistil_jax.sharding import make_mesh
from xdistil_jax.students import StudentSpec, with_table
from xdistil_jax.students import student_spec as make_student
from xdistil_jax.teacher.names import kept_by

_ROBERTA: dict[str, Any] = {
    "positions": 514, "token_types": 1, "position_offset": 2, "norm_epsilon": 1e-5,
}  # fmt: skip
TEACHERS: dict[str, EncoderSpec] = {
    "mbert": EncoderSpec(119547, 768, 12, 12, 3072),
    "xlmr-large": EncoderSpec(250002, 1024, 24, 16, 4096, **_ROBERTA, family="xlm-roberta"),
    "xlmr-xl": EncoderSpec(
        250880, 2560, 36, 32, 10240, **_ROBERTA, pre_norm=True, family="xlm-roberta-xl"
    ),
}
HUB = {
    "bert-base-multilingual-cased": "mbert",
    "google-bert/bert-base-multilingual-cased": "mbert",
    "xlm-roberta-large": "xlmr-large",
    "FacebookAI/xlm-roberta-large": "xlmr-large",
    "facebook/xlm-roberta-xl": "xlmr-xl",
}


@dataclass(frozen=True)
class Plan:
    """What decides the shapes of a run before any text or weight is read.

    ``coordinates`` (None: all of it) is what the cache keeps of a state. ``tokens_per_chip`` (0:
    the experiment's own budgets) holds for every batch; ``words`` is the size of the set that is
    evaluated, ``classes`` the number of tags.
    """

    experiment: Experiment
    teacher: AnySpec
    student: Spec
    stages: tuple[Stage, ...]
    layers: tuple[str, ...]
    coordinates: int | None
    dtype: str
    mesh: Mesh
    teacher_mesh: Mesh
    split: bool
    tokens_per_chip: int
    all_buckets: bool
    classes: int
    words: int


def teacher_spec(config: TeacherConfig, name: str, classes: int) -> AnySpec:
    """The teacher by name, or as the experiment has it; no weights are read.

    Raises:
        ValueError: for a teacher whose sizes can't be known here.
    """
    named = name or HUB.get(config.checkpoint, "")
    folder = Path(config.checkpoint)
    if named:
        spec: AnySpec = replace(TEACHERS[named], classes=classes)
    elif not config.checkpoint:
        sizes = config.width, config.layers, config.heads, config.feed_forward
        positions = max(config.max_length, 16)
        return EncoderSpec(config.vocab_size, *sizes, positions=positions, classes=classes)
    elif (folder / "config.json").is_file():
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        spec = replace(read_spec(record, classes), stacked=True)
    else:
        raise ValueError(
            f"teacher.checkpoint {config.checkpoint!r} is no folder with a config.json, so its "
            f"sizes are unknown: give --teacher with one of {', '.join(TEACHERS)}, or a folder"
        )
    return replace(spec, layers=config.keep_layers) if config.keep_layers else spec


def kept_coordinates(experiment: Experiment, width: int) -> int | None:
    """How many coordinates of a state of ``width`` the cache keeps; None: the state itself.

    Raises:
        ValueError: where only the states tell, and where the run would be refused.
    """
    codec = experiment.teacher.codec
    kept = kept_by(codec)
    if isinstance(kept, float):
        raise ValueError(
            f"teacher.codec is {codec}: only the states tell how many coordinates that is; compile "
            "for so many, such as pca-256"
        )
    if kept is not None and kept > width:
        raise ValueError(f"teacher.codec is {codec}, but the states are {width} wide")
    if kept is None and experiment.student.imitate == "coordinates":
        raise ValueError(
            f"student.imitate is coordinates, but teacher.codec, which keeps none, is {codec}: set "
            "it to one that does, such as pca-256"
        )
    return kept


def student_spec(
    experiment: Experiment, teacher: AnySpec, kept: int | None, attends: tuple[str, ...]
) -> StudentSpec:
    """The student as the experiment has it; it reproduces the attention of the layers ``attends``.

    The cache has ``kept`` coordinates of each state (None: all of it). Its vocabulary is the
    teacher's unless the experiment cuts it: that of the text is smaller.

    Raises:
        ValueError: for sizes that are missing or wrong; see ``students.student_spec``.
    """
    config = experiment.student
    vocabulary = config.vocab_size or teacher.vocab_size
    layers = imitated_layers(experiment.teacher, config, teacher)
    width = kept if kept and config.imitate == "coordinates" else teacher.width
    target = Target(width, layers, attends)
    length = experiment.teacher.max_length
    spec = make_student(config, target, vocabulary, teacher.classes, length)
    return with_table(config, spec, getattr(teacher, "embedding_width", 0) or teacher.width)


def make_plan(
    experiment: Experiment,
    devices: Sequence[jax.Device],
    *,
    teacher: str = "",
    student: str = "",
    tensor_parallel: int | None = None,
    tokens_per_chip: int = 0,
    all_buckets: bool = False,
    classes: int = 7,
    words: int = 100_000,
) -> Plan:
    """The plan of ``experiment`` on ``devices``; ``teacher`` and ``student`` stand in for its own.

    Raises:
        ValueError: for an experiment whose teacher is no single model, or has no attention that a
            stage asks for, or whose sizes only its text tells.
    """
    config = experiment.teacher
    if student:
        named = replace(student_config(student), vocab_size=experiment.student.vocab_size)
        experiment = replace(experiment, student=named)
    if experiment.ensemble.teachers or config.outputs:
        raise ValueError("only a run with one teacher, which is a model, can be compiled ahead")
    spec = teacher_spec(config, teacher, classes)
    ways = config.tensor_parallel if tensor_parallel is None else tensor_parallel
    attends = attended_layers(spec, experiment.student, experiment.plan(), split=ways > 0)
    taught = any(stage.taught for stage in experiment.plan())
    kept = kept_coordinates(experiment, spec.width) if taught else None
    own = student_spec(experiment, spec, kept, attends)
    layers, stages = imitated_layers(config, experiment.student, spec), experiment.plan(own.groups)
    precision, mesh = experiment.run.precision, make_mesh(devices)
    dtype = "bfloat16" if precision == "auto" else precision
    return Plan(
        experiment, spec, own, stages, layers, kept, dtype, mesh,
        split_mesh(devices, ways) or mesh, ways > 0, tokens_per_chip, all_buckets, classes, words,
    )  # fmt: skip
