"""What an experiment will cost, by arithmetic: FLOPs, bytes, chip-hours, dollars. Imports no jax.

A product of [m, k] and [k, n] is 2 m k n FLOPs; what is not a product of matrices is not counted,
nor are evaluation and input. A slot is a piece of text or of padding: what a chip computes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from xdistil_jax.chips import Chip
from xdistil_jax.distill.stages import Stage
from xdistil_jax.experiment import Experiment
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
# A parameter of each group of the student, for the patterns of a stage to cover.
_GROUPS = {
    "head": "head/kernel",
    "projection": "projection/kernel",
    "bilstm": "bilstm/kernel",
    "embed": "embed/table",
}


class Text(NamedTuple):
    """Rows of text, cut into pieces; ``width`` is the mean over the slots of their row's width."""

    rows: int
    tokens: int
    slots: int
    width: float


class Counts(NamedTuple):
    """The text of an experiment. ``distinct`` is what the cache computes: no text twice.

    ``vocab`` is the number of pieces that the student keeps; ``how`` says how all was counted.
    """

    train: Text
    transfer: Text
    distinct: Text
    vocab: int
    classes: int
    how: str


@dataclass(frozen=True)
class TeacherSizes:
    """Sizes of an encoder; ``fine_tuned``: is it to be trained first?

    ``products`` is the number of matrices D × F in a feed-forward block (3 where it is gated),
    ``places`` the number of relative places that each query or key is multiplied with, ``cached``
    the number of layers whose states are kept.
    """

    name: str
    vocab: int
    width: int
    layers: int
    feed_forward: int
    products: int = 2
    places: int = 0
    embedding_width: int = 0
    fine_tuned: bool = True
    cached: int = 1

    @property
    def parameters(self) -> int:
        """Of the products and the table of pieces: all but about a hundredth."""
        table = self.vocab * (self.embedding_width or self.width)
        return table + self.layers * self._weights + self.embedding_width * self.width

    @property
    def _weights(self) -> int:
        return self.width * (4 * self.width + self.products * self.feed_forward)

    def forward(self, classes: int, width: float) -> float:
        """FLOPs a slot of the forward pass over rows of ``width``."""
        attention = 4 * self.width * width + 2 * self.width * self.places
        outside = self.embedding_width * self.width + self.width * classes
        return self.layers * (2 * self._weights + attention) + 2 * outside


@dataclass(frozen=True)
class StudentSizes:
    """Sizes of the BiLSTM; ``source_width`` > 0 in training by a factored embedding."""

    vocab: int
    embed: int
    hidden: int
    teacher_width: int
    classes: int
    head_on: str = "projection"
    source_width: int = 0

    def products(self) -> dict[str, int]:
        """Group -> weights that each slot is multiplied with, from top to bottom."""
        E, H, D = self.embed, self.hidden, self.teacher_width
        return {
            "head": self.classes * (D if self.head_on == "projection" else 2 * H),
            "projection": 2 * H * D,
            "bilstm": 8 * H * (E + H),
            "embed": self.source_width * E,
        }

    def parameters(self) -> dict[str, int]:
        """Group -> parameters, as trained."""
        found = self.products()
        found["head"] += self.classes
        found["projection"] += self.teacher_width
        found["bilstm"] += 8 * self.hidden
        found["embed"] += self.vocab * self.embed
        return found

    def forward(self) -> float:
        """FLOPs a slot of the forward pass."""
        return 2.0 * sum(self.products().values())

    def step(self, trained: frozenset[str]) -> float:
        """FLOPs a slot of a training step in which only the groups in ``trained`` change.

        Beside its forward pass a group costs as much again for the gradient of its weights, if it
        is trained, and for that of its input, if one is trained that this comes from. The
        recurrence has both in one; a piece's row costs no product.
        """
        sources = {
            "head": {"bilstm", "embed"}
            | ({"projection"} if self.head_on == "projection" else set()),
            "projection": {"bilstm", "embed"},
        }
        flops = self.forward()
        for name, product in self.products().items():
            times = (name in trained) + bool(sources.get(name, set()) & trained)
            if name == "bilstm":
                times = 2 * bool({"bilstm", "embed"} & trained)
            flops += 2.0 * times * product
        return flops


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


def trained_groups(stage: Stage) -> frozenset[str]:
    """Groups of the student of which the stage trains a part; all for patterns of other names."""
    found = {g for g, path in _GROUPS.items() if any(matches(p, path) for p in stage.trainable)}
    return frozenset(found or _GROUPS)


def stage_slots(stage: Stage, counts: Counts, budget: int) -> float:
    """Slots of a stage that isn't stopped early."""
    share = stage.labelled_fraction
    epoch = counts.train.slots if share == 1 else counts.transfer.slots / (1 - share)
    return max(stage.stop.epochs * epoch, float(stage.stop.min_steps * budget))


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
    name: str, slots: float, budget: int, groups: frozenset[str], student: StudentSizes,
    chip: Chip, chips: int,
) -> Phase:  # fmt: skip
    flops = slots * student.step(groups)
    moved = _ADAMW_BYTES * sum(n for name, n in student.parameters().items() if name in groups)
    time = _hours(chip, chips, flops, chip.student_utilisation, slots / budget, moved)
    return Phase(name, slots, flops, time)


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
    stages, budget, text = experiment.plan(), experiment.run.token_budget, counts.distinct
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
        slots, groups = stage_slots(stage, counts, budget), trained_groups(stage)
        name = f"{number} {stage.name}"
        phases.append(_stage(name, slots, budget, groups, student, chip, chips))
        inside += said(slots, budget) if stage.taught else 0.0
    return Estimate(
        tuple(phases),
        _cache_bytes(text.tokens if taught else 0, counts.classes, teachers),
        _host_bytes(counts, teachers),
        _chip_bytes(teachers, student),
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


def _chip_bytes(teachers: tuple[TeacherSizes, ...], student: StudentSizes) -> int:
    """Parameters in fp32; of what is trained the gradient and two moments, too."""
    trained = [teacher.parameters for teacher in teachers if teacher.fine_tuned]
    trained.append(sum(student.parameters().values()))
    said = sum(teacher.parameters for teacher in teachers)
    return max(16 * max(trained), 4 * said)
