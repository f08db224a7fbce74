"""What `xdistil plan` says: the experiment of a file, what it will take, which students fit.

What needs more than the base install is imported where it is asked for.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdistil_jax.chips import Chip
    from xdistil_jax.estimate import Counts, Estimate
    from xdistil_jax.experiment import Experiment


def load_file(path: str) -> dict[str, Any]:
    """The names that a Python file of the user's defines; it may import its neighbours.

    Raises:
        FileNotFoundError: with the files that are there.
    """
    file = Path(path)
    if not file.is_file():
        there = ", ".join(sorted(str(each) for each in file.parent.glob("*.py"))) or "no .py file"
        raise FileNotFoundError(f"{file} is not there; in its folder there is {there}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return vars(module)


def load_experiment(path: str) -> "Callable[[str | None], Experiment]":
    """The ``experiment`` of a Python file: strategy (None: its own choice) -> Experiment.

    Raises:
        FileNotFoundError: with the files that are there.
        ValueError: if the file defines no ``experiment``.
    """
    from xdistil_jax.experiment import Experiment

    chosen = load_file(path).get("experiment")
    if not isinstance(chosen, Experiment):
        raise ValueError(f"{path} defines no `experiment` that is an Experiment")
    return lambda strategy: chosen if strategy is None else replace(chosen, strategy=strategy)


def plan_options() -> argparse.ArgumentParser:
    """The options of `xdistil plan` that are no fields of an experiment."""
    parser = argparse.ArgumentParser("xdistil plan", add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("plan options, beside the fields of the experiment below")
    group.add_argument("--estimate", action="store_true", help="what it will take; reads the text")
    group.add_argument("--chip", default="v5e", help="for --estimate: a chip of the table")
    group.add_argument("--chips", type=int, default=1, help="how many")
    group.add_argument(
        "--prices", default="", help="a table of your own, as xdistil_jax/chips.json"
    )
    group.add_argument("--student", default="", help="one by name, such as base or l6-h384")
    group.add_argument("--max-mb", type=float, help="students of at most so many megabytes")
    group.add_argument("--max-ms", type=float, help="and milliseconds, at 1 × 32 pieces here")
    return parser


def plan_texts(experiment: "Experiment", given: argparse.Namespace) -> Iterator[str]:
    """The stages and what was asked for beside them, each as soon as it is known.

    Raises:
        ValueError: for a codec, a chip or a table of prices that can't be used.
    """
    from xdistil_jax.distill.stages import describe
    from xdistil_jax.teacher.names import kept_by

    for teacher in (experiment.teacher, *experiment.ensemble.teachers):
        kept_by(teacher.codec)
    states = f"cached as {experiment.teacher.codec}, imitated as {experiment.student.imitate}"
    name = f"{experiment.name}, {experiment.strategy}"
    yield f"{name}; {states}\n\n{describe(experiment.plan(_groups(experiment)))}"
    if given.estimate:
        from xdistil_jax.chips import read_chip

        yield f"\n{estimate_text(experiment, read_chip(given.chip, given.prices), given.chips)}"
    if given.max_mb is not None or given.max_ms is not None:
        limits = (math.inf if each is None else each for each in (given.max_mb, given.max_ms))
        yield from _student_texts(experiment, *limits)


def _groups(experiment: "Experiment") -> tuple[str, ...] | None:
    """The student's, if they depend on the sizes of the teacher and these can be known here."""
    if experiment.student.kind == "bilstm" or importlib.util.find_spec("jax") is None:
        return None
    from xdistil_jax.counting import planned_groups

    return planned_groups(experiment)


def _student_texts(experiment: "Experiment", max_mb: float, max_ms: float) -> Iterator[str]:
    from xdistil_jax import sizing
    from xdistil_jax.counting import frame

    spec, how = frame(experiment)
    sizes = sizing.SIZES[experiment.student.kind]
    yield (
        f"\n{len(sizes)} students of {sizing.vocabulary(spec):,} pieces"
        f"{sizing.projected(spec)} ({how}), timed at 1 × 32 in fp32:"
    )
    found = list(sizing.candidates(spec, sizes))
    yield table(sizing.describe(found, sizing.NAMES[experiment.student.kind], max_mb, max_ms))


def estimate_text(experiment: "Experiment", chip: "Chip", chips: int) -> str:
    """What the experiment will take, as tables for people.

    Raises:
        ValueError: for a number of chips below 1.
    """
    from xdistil_jax.counting import all_teachers, count_text, planned_student, student_sizes
    from xdistil_jax.estimate import estimate

    if chips < 1:
        raise ValueError(f"--chips {chips}: expected 1 or more")
    counts = count_text(experiment)
    teachers = all_teachers(experiment, counts)
    spec = planned_student(experiment, counts.vocab, counts.classes, teachers)
    student = student_sizes(spec)
    known = tuple(each for each in teachers if each is not None)
    found = estimate(experiment, counts, known, student, chip, chips)
    text = _text_part(counts, student.vocab)
    return "\n\n".join((text, _store_part(found, chip), _time_part(found, chip, chips)))


def _text_part(counts: "Counts", kept: int) -> str:
    rows = [("text", "rows", "pieces", "with padding")]
    named = (("train", counts.train), ("transfer", counts.transfer), ("distinct", counts.distinct))
    rows += [(name, f"{t.rows:,}", f"{t.tokens:,}", f"{t.slots:,}") for name, t in named]
    more = f"{counts.how}; the student keeps {kept:,} pieces; {counts.classes} tags"
    return f"{table(rows)}\n{more}"


def _store_part(found: "Estimate", chip: "Chip") -> str:
    rows = [("cache", "GB")]
    rows += [(name, f"{size / 1e9:.2f}") for name, size in found.cache_bytes.items()]
    return (
        f"{table(rows)}\n"
        f"host memory: at least {found.host_bytes / 1e9:.2f} GB for text and a teacher on its way; "
        "the cache is read from disk, fastest where it fits the memory that is left\n"
        f"chip memory: {found.chip_bytes / 1e9:.2f} of {chip.hbm_gb:g} GB for parameters, moments"
    )


def _time_part(found: "Estimate", chip: "Chip", chips: int) -> str:
    def money(hours: float) -> str:
        return "?" if chip.usd_per_hour is None else f"{hours * chip.usd_per_hour:.2f}"

    rows = [("phase", "slots, millions", "PFLOP", "chip-hours", "hours", "$")]
    total = sum(phase.chip_hours for phase in found.phases)
    whole = ("all", "", f"{sum(p.flops for p in found.phases) / 1e15:.3f}", total)
    own = (
        (p.name, f"{p.slots / 1e6:.1f}", f"{p.flops / 1e15:.3f}", p.chip_hours)
        for p in found.phases
    )
    for name, slots, flops, hours in (*own, whole):
        rows.append((name, slots, flops, f"{hours:.4f}", f"{hours / chips:.4f}", money(hours)))
    price = "unknown" if chip.usd_per_hour is None else f"${chip.usd_per_hour:g} an hour"
    cache = "no stage reads the teacher"
    if found.pays_from is not None:
        cache = (
            f"the cache beats the teacher inside the step from {found.pays_from} student"
            f"{'s' if found.pays_from > 1 else ''} on: inside, each student costs "
            f"{found.inside:.4f} chip-hours more"
        )
    return (
        f"{table(rows)}\n{cache}\n"
        f"{chips} × {chip.name} at {price} a chip; assumed utilisation: encoder "
        f"{100 * chip.encoder_utilisation:g}%, student {100 * chip.student_utilisation:g}% "
        f"({chip.source})\n"
        "Stages may stop earlier; evaluation, compilation, input and the steps of the recurrence "
        "waiting for each other are not counted"
    )


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """First column to the left, the others to the right."""
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join((row[0].ljust(sizes[0]), *map(str.rjust, row[1:], sizes[1:]))) for row in rows
    )
