"""Which layers of the teacher the student imitates, from the top down."""

from typing import NamedTuple

from xdistil_jax.experiment import StudentConfig, TeacherConfig
from xdistil_jax.models.families import AnySpec


class Target(NamedTuple):
    """What of a teacher the student's states are to reproduce: ``layers``, each of ``width``."""

    width: int
    layers: tuple[str, ...]


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
