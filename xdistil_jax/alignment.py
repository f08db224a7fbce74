"""Which layers of the teacher the student imitates, from the top down."""

from typing import NamedTuple

from xdistil_jax.configs import StudentConfig, TeacherConfig
from xdistil_jax.distill.stages import Stage
from xdistil_jax.experiment import Experiment
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.families import AnySpec
from xdistil_jax.session import Ensemble, Given, Trained
from xdistil_jax.teacher.ensemble import LAYER


class Target(NamedTuple):
    """What of a teacher the student is to reproduce.

    The states of ``layers``, each of ``width``, and the attention of the layers ``attends``.
    """

    width: int
    layers: tuple[str, ...]
    attends: tuple[str, ...] = ()


def find_target(experiment: Experiment, teacher: Trained | Given | Ensemble) -> Target:
    """What of the teacher the experiment's student is to reproduce.

    Raises:
        ValueError: if the plan asks for states or attention of a teacher that has none, or for
            several layers where there is one.
    """
    student, stages = experiment.student, experiment.plan()
    known = isinstance(teacher, Trained)
    attends = attended_layers(
        teacher.spec if known else None, student, stages, split=known and teacher.mesh is not None
    )
    if isinstance(teacher, Ensemble):
        config = experiment.ensemble
        if config.states == "first":
            return find_target(experiment, teacher.lead)
        each = [find_target(experiment, member) for member in teacher.members]
        if any(len(one.layers) > 1 for one in each):
            raise ValueError(
                "ensemble.states is concatenated: then the student imitates one layer of each "
                "teacher; leave student.align at one and teacher.hidden_layers empty"
            )
        return Target(config.width or sum(one.width for one in each), (LAYER,))
    if isinstance(teacher, Trained):
        return Target(teacher.spec.width, teacher.layers, attends)
    outputs = teacher.outputs
    if student.align == "top":
        raise ValueError(
            "student.align is top, but teacher.outputs holds one layer: leave it at one"
        )
    asks = [stage.name for stage in stages if any(t.loss.startswith("repr") for t in stage.terms)]
    if asks and not outputs.width:
        raise ValueError(
            f"stage {asks[0]!r} needs hidden states, and teacher.outputs holds logits only: take "
            "logit-ce or D1, or write the states, too"
        )
    return Target(outputs.width or experiment.teacher.width, (outputs.layer,))


def imitated_layers(
    teacher: TeacherConfig, student: StudentConfig, spec: AnySpec
) -> tuple[str, ...]:
    """Names of the teacher's layers: the one, those that are named, or the topmost.

    With ``student.align="top"`` one for each layer of the student and one for its embeddings, as
    long as there are any, from ``teacher.layer`` down.

    Raises:
        ValueError: if the teacher has no such layer, or the student none to imitate them with.
    """
    if student.align == "top" and (student.kind == "bilstm" or teacher.hidden_layers):
        raise ValueError(
            "student.align is top: that is for --student.kind transformer, and without "
            "teacher.hidden_layers; a BiLSTM imitates the layers that teacher.hidden_layers names"
        )
    numbers, field = teacher.hidden_layers, "hidden_layers"
    if not numbers:
        numbers, field = (teacher.layer or spec.layers,), "layer"
    lowest = 1 if field == "layer" else 0
    for number in numbers:
        if not lowest <= number <= spec.layers:
            less = "0: the last" if lowest else "0: the embeddings"
            raise ValueError(
                f"teacher.{field} is {number}; the teacher has layers 1 to {spec.layers} ({less})"
            )
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"teacher.hidden_layers {' '.join(map(str, numbers))}: one is there twice")
    if student.align == "top":
        numbers = range(numbers[0], max(-1, numbers[0] - student.depth - 1), -1)
    return tuple(spec.hidden_names[number] for number in numbers)


def attended_layers(
    teacher: AnySpec | None, student: StudentConfig, stages: tuple[Stage, ...], *, split: bool
) -> tuple[str, ...]:
    """The topmost layers of the teacher, one for each of the student's: they give attention.

    None where no stage asks for it. ``teacher`` is None where it is no single model; ``split``: are
    its parameters over several devices?

    Raises:
        ValueError: for a stage that asks for the attention of a teacher or a student without one.
    """
    asks = [stage.name for stage in stages if any(t.loss == "attention" for t in stage.terms)]
    if not asks:
        return ()
    if student.kind != "transformer":
        raise ValueError(f"stage {asks[0]!r} needs attention, and a {student.kind} has none")
    if teacher is None:
        raise ValueError(
            f"stage {asks[0]!r} needs the teacher's attention, which is computed in each step: "
            "that takes a single teacher that is a model, neither outputs nor an ensemble"
        )
    if not isinstance(teacher, EncoderSpec) or split:
        kind = "one that is split over devices" if split else teacher.family
        raise ValueError(
            f"stage {asks[0]!r} needs the teacher's attention, and {kind} doesn't tell it: take a "
            "teacher of BERT's or RoBERTa's kind, whole on each device"
        )
    return teacher.hidden_names[:0:-1][: student.depth]
