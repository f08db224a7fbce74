"""What an experiment will cost, by arithmetic: FLOPs, bytes, chip-hours, dollars. Imports no jax.

FLOPs are those of ``sizes``; evaluation and input are not counted.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from xdistil_jax.chips import Chip
from xdistil_jax.distill.stages import Stage
from xdistil_jax.experiment import Experiment
from xdistil_jax.sizes import StudentSizes, TeacherSizes
from xdistil_jax.trees import matches

# Bytes a token of one cached layer of width D; the logits come on top.
CODECS: Mapping[str, Callable[[int], int]] = {
    "bf16": lambda width: 2 * width,
    "int8": lambda width: width + 2,
    **{f"pca-{rank}": (lambda width, rank=rank: min(rank, width) + 2) for rank in (256, 128, 64)},
    "logits only": lambda width: 0,
}
# The cache's batches on an accelerator, in slots.
CACHE_BATCH = 16384
# AdamW in fp32: gradient, parameter and two moments are read and written, at each step.
_ADAMW_BYTES = 32


class Text(NamedTuple):
    """Rows of text, cut into pieces; ``width`` is the mean over the slots of their row's width."""

    rows: int
    tokens: int
    slots: int
    width: float


class Counts(NamedTuple):
    """The text of an experiment. ``distinct`` is what the cache computes: no text twice.

    ``vocab`` is the number of pieces that occur, of which a student may keep fewer; ``how`` says
    how all was counted.
    """

    train: Text
    transfer: Text
    distinct: Text
    vocab: int
    classes: int
    how: str


class Phase(NamedTuple):
    """A part of a run: slots, FLOPs and the time of all chips together."""

    name: str
    slots: float
    flops: float
    chip_hours: float


class Estimate(NamedTuple):
    """All that is known before anything runs.

    ``inside`` are the chip-hours of the teacher inside the steps, for each student; ``pays_from``
    is the number of students from which on the cache is cheaper (None: no stage reads the teacher).
    """

    phases: tuple[Phase, ...]
    cache_bytes: dict[str, int]
    host_bytes: int
    chip_bytes: int
    inside: float
    pays_from: int | None


def trained_groups(stage: Stage, groups: tuple[str, ...]) -> frozenset[str]:
    """Those of the student's ``groups`` that the stage trains a part of.

    All for patterns of other names.
    """
    paths = {group: f"{group}/{'table' if group == 'embed' else 'kernel'}" for group in groups}
    found = {g for g, path in paths.items() if any(matches(p, path) for p in stage.trainable)}
    return frozenset(found or groups)


def stage_slots(stage: Stage, counts: Counts, budget: int) -> float:
    """Slots of a stage that isn't stopped early."""
    share = stage.labelled_fraction
    epoch = counts.train.slots if share == 1 else counts.transfer.slots / (1 - share)
    return max(stage.stop.epochs * epoch, float(stage.stop.min_steps * budget))


def stage_width(stage: Stage, counts: Counts) -> float:
    """Mean width of the rows over the slots of a stage."""
    share = stage.labelled_fraction
    return share * counts.train.width + (1 - share) * counts.transfer.width


def _hours(chip: Chip, chips: int, flops: float, share: float, steps: float, moved: float) -> float:
    """Chip-hours at ``share`` of the peak, or of moving ``moved`` bytes a step in each chip."""
    memory = chips * steps * moved / (chip.gb_per_s * 1e9)
    return max(flops / (chip.flops * share), memory) / 3600


def _fine_tuning(
    experiment: Experiment, counts: Counts, teacher: TeacherSizes, chip: Chip, chips: int
) -> Phase:
    config = experiment.teacher
    stop, budget = config.recipe.stop, config.token_budget
    slots = max(stop.epochs * counts.train.slots, float(stop.min_steps * budget))
    flops = 3 * slots * teacher.forward(counts.classes, counts.train.width)
    moved = _ADAMW_BYTES * teacher.parameters
    time = _hours(chip, chips, flops, chip.encoder_utilisation, slots / budget, moved)
    return Phase(f"fine-tune {teacher.name}", slots, flops, time)


def _stage(
    number: int, stage: Stage, counts: Counts, budget: int, student: StudentSizes, chip: Chip,
    chips: int,
) -> Phase:  # fmt: skip
    slots, groups = stage_slots(stage, counts, budget), trained_groups(stage, student.groups)
    states = any(term.loss.startswith("repr") for term in stage.terms)
    logits = any(not term.loss.startswith(("repr", "attention")) for term in stage.terms)
    a_slot = student.step(groups, stage_width(stage, counts), logits=logits, states=states)
    moved = _ADAMW_BYTES * sum(n for name, n in student.parameters().items() if name in groups)
    flops = slots * a_slot
    time = _hours(chip, chips, flops, chip.student_utilisation, slots / budget, moved)
    return Phase(f"{number} {stage.name}", slots, flops, time)


def _attends(stage: Stage) -> bool:
    """Does the teacher run inside the step, for its attention?"""
    return any(term.loss == "attention" for term in stage.terms)


def estimate(
    experiment: Experiment,
    counts: Counts,
    teachers: tuple[TeacherSizes, ...],
    student: StudentSizes,
    chip: Chip,
    chips: int,
) -> Estimate:
    """The phases of a run on ``chips`` chips, its cache and the memory that it needs.

    A phase takes as long as its products at the assumed utilisation or, if that is more, as its
    parameters take to pass through every chip's memory at each step.
    """
    stages, text = experiment.plan(student.groups), counts.distinct
    budget = experiment.run.token_budget
    a_slot = sum(teacher.forward(counts.classes, text.width) for teacher in teachers)
    weights = 4 * sum(teacher.parameters for teacher in teachers)

    def said(slots: float, batch: int) -> float:
        flops, share = slots * a_slot, chip.encoder_utilisation
        return _hours(chip, chips, flops, share, slots / batch, weights)

    tuned = [teacher for teacher in teachers if teacher.fine_tuned]
    phases = [_fine_tuning(experiment, counts, each, chip, chips) for each in tuned]
    taught = any(stage.taught for stage in stages)
    if taught:
        once = said(text.slots, CACHE_BATCH)
        phases.append(Phase("cache", text.slots, a_slot * text.slots, once))
    inside = 0.0
    for number, stage in enumerate(stages, 1):
        phase = _stage(number, stage, counts, budget, student, chip, chips)
        asked = said(phase.slots, budget) if stage.taught else 0.0
        if _attends(stage):
            flops, hours = phase.flops + a_slot * phase.slots, phase.chip_hours + asked
            phase = phase._replace(flops=flops, chip_hours=hours)
        phases.append(phase)
        inside += asked
    return Estimate(
        tuple(phases),
        _cache_bytes(text.tokens if taught else 0, counts.classes, teachers),
        _host_bytes(counts, teachers),
        _chip_bytes(teachers, student, inside=any(map(_attends, stages))),
        inside,
        int(once / inside) + 1 if inside else None,
    )


def _cache_bytes(tokens: int, classes: int, teachers: tuple[TeacherSizes, ...]) -> dict[str, int]:
    """Codec -> bytes of all teachers' caches, fp16 logits with them."""
    return {
        name: tokens * sum(each.cached * size(each.width) + 2 * classes for each in teachers)
        for name, size in CODECS.items()
    }


def _host_bytes(counts: Counts, teachers: tuple[TeacherSizes, ...]) -> int:
    """Rows and a teacher that is being loaded.

    Text and what is made of it lie on disk. For each row its hash, its place in the cache and what
    the samplers draw it by are in memory: 180 bytes at most were measured; loading took 1.1 times a
    checkpoint (experiments/README.md).
    """
    largest = max((teacher.parameters for teacher in teachers), default=0)
    return 180 * (counts.train.rows + counts.transfer.rows) + int(1.1 * 4 * largest)


def _chip_bytes(teachers: tuple[TeacherSizes, ...], student: StudentSizes, *, inside: bool) -> int:
    """Parameters in fp32; of what is trained the gradient and two moments, too.

    Of teacher and student at once where the teacher runs ``inside`` the step.
    """
    tuned = [teacher.parameters for teacher in teachers if teacher.fine_tuned]
    said = 4 * sum(teacher.parameters for teacher in teachers)
    own = 16 * sum(student.parameters().values()) + said * inside
    return max(own, 16 * max(tuned, default=0), said)
