"""Stages as values: what is minimised, what is trainable, for how long. Imports no jax.

A strategy is a tuple of stages; the engine runs any such tuple and never asks for its name.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

ReprLoss = Literal["repr", "repr_kl", "repr_cosine", "repr_kld_keras"]
LogitLoss = Literal[
    "logit",
    "logit_all",
    "logit_log_odds",
    "logit_log_odds_all",
    "logit_log_prob",
    "logit_log_prob_all",
]
Loss = Literal[ReprLoss, LogitLoss, "logit_kl", "ce", "mlm", "attention"]
Decay = Literal["cosine", "linear", "constant", "restarts", "exponential", "bert"]
Watch = Literal["auto", "transfer_loss", "dev_f1"]
Unfreezing = Literal["top_down", "bottom_up", "coarse", "at_once"]


@dataclass(frozen=True)
class Term:
    """One loss of a stage and its weight (α, β, γ of equation 7)."""

    loss: Loss
    weight: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """AdamW with linear warm-up to ``peak`` and a decay to ``floor`` at the last step.

    ``warmup`` is a share of the stage's steps; ``clip`` bounds the global norm of the gradient of
    the trainable parameters; ``weight_decay`` leaves vectors alone. The rate changes ``every``
    step, or only with each epoch, as in the paper's code. ``restarts`` is a cosine that begins
    anew after ``period`` of those units; then the period is multiplied by ``period_mult`` and the
    peak by ``peak_mult`` (SGDR). It ignores the length of the stage. ``bert`` is that of BERT's own
    script, which goes down to 0: like ``constant``, it has no use for ``floor``. See
    ``rates.learning_rate`` for the formulas and ``strategies.PUBLISHED`` for the schedules of the
    paper's code.
    """

    peak: float = 1e-3
    warmup: float = 0.05
    decay: Decay = "cosine"
    floor: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    every: Literal["step", "epoch"] = "step"
    period: float = 50.0
    period_mult: float = 2.0
    peak_mult: float = 0.97

    def __post_init__(self) -> None:
        if self.decay == "exponential" and not 0.0 < self.floor <= self.peak:
            raise ValueError(
                f"schedule.floor is {self.floor:g} and schedule.peak {self.peak:g}: an exponential "
                "decay needs a floor above 0 and not above the peak, such as 1e-7"
            )
        if self.decay == "restarts" and not (self.period >= 1.0 and self.period_mult >= 1.0):
            raise ValueError(
                f"schedule.period is {self.period:g} and schedule.period_mult "
                f"{self.period_mult:g}: restarts need both to be at least 1"
            )


@dataclass(frozen=True)
class StopRule:
    """At most ``epochs``, or ``min_steps`` steps where that is more.

    Evaluated ``evaluations`` times an epoch; stopped after ``patience`` evaluations without a
    better figure. ``watch="auto"``: dev F1 where a stage has cross-entropy, else the loss on
    held-out transfer sentences.
    """

    epochs: float = 10.0
    evaluations: float = 1.0
    patience: int = 3
    min_steps: int = 0
    watch: Watch = "auto"

    def __post_init__(self) -> None:
        above = "a number above 0, such as 2 or 0.5"
        allowed = {
            "epochs": (0.0 < self.epochs < math.inf, above),
            "evaluations": (0.0 < self.evaluations < math.inf, above),
            "patience": (self.patience >= 1, "1 or more"),
            "min_steps": (self.min_steps >= 0, "0 or more"),
        }
        for name, (holds, expected) in allowed.items():
            if not holds:
                raise ValueError(f"stop.{name} is {getattr(self, name)}: expected {expected}")


@dataclass(frozen=True)
class Program:
    """The static part of a stage: it decides the executable. Equal programs share one."""

    losses: tuple[Loss, ...]
    trainable: tuple[str, ...]
    decay: Decay


@dataclass(frozen=True)
class Stage:
    """One step of a strategy. ``trainable`` are patterns over parameter paths.

    ``labelled_fraction`` of each batch is labelled text and the rest transfer text. Moments start
    afresh unless ``carry``: then parameters that the stage before trained too keep theirs. The
    parameters that ``fresh`` (patterns) covers are drawn anew before the first step.
    """

    name: str
    terms: tuple[Term, ...]
    trainable: tuple[str, ...]
    labelled_fraction: float = 0.0
    schedule: Schedule = Schedule()
    stop: StopRule = StopRule()
    carry: bool = False
    fresh: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.terms or not self.trainable:
            raise ValueError(f"stage {self.name!r} needs at least one term and one trainable group")
        if not 0.0 <= self.labelled_fraction <= 1.0:
            raise ValueError(
                f"stage {self.name!r}: labelled_fraction is {self.labelled_fraction}, "
                "expected a share from 0 to 1"
            )

    @property
    def program(self) -> Program:
        """What is static; every number of the stage is traced instead."""
        losses = tuple(term.loss for term in self.terms)
        return Program(losses, self.trainable, self.schedule.decay)

    @property
    def taught(self) -> bool:
        """Does it learn from the teacher, and not from labels alone?"""
        return self.labelled_fraction < 1

    @property
    def watched(self) -> Literal["transfer_loss", "dev_f1"]:
        """The figure that decides on the best parameters of the stage."""
        if self.stop.watch != "auto":
            return self.stop.watch
        return "dev_f1" if any(term.loss == "ce" for term in self.terms) else "transfer_loss"


def thaws(groups: tuple[str, ...], order: Unfreezing) -> tuple[tuple[str, ...], ...]:
    """What is unfrozen at each step of ``order``, of ``groups`` that run from the top down.

    ``top_down``: group by group · ``bottom_up``: the top, which is what the loss reads and would
    else be a random map, then from the bottom up to it, as the code does where a hash seed turns
    its order round · ``coarse``: head, projection, then all below them, as in the code for
    transformers · ``at_once``: all.
    """
    each = tuple((group,) for group in groups)
    if order == "bottom_up":
        return each[:1] + each[:0:-1]
    if order == "coarse":
        alone = tuple(step for step in each if step[0] in ("head", "projection"))
        below = tuple(group for group in groups if (group,) not in alone)
        return (*alone, below) if below else alone
    return (groups,) if order == "at_once" else each


def unfreeze(
    stage: Stage,
    groups: tuple[str, ...],
    *,
    partial: float = 1.0,
    order: Unfreezing = "top_down",
) -> tuple[Stage, ...]:
    """Gradual unfreezing (Algorithm 1): one stage for each step of ``order``; see ``thaws``.

    What has been unfrozen stays so. All but the last stage get ``partial`` of the epochs; only the
    first draws what is to be ``fresh``.

    Raises:
        ValueError: for a share of nothing.
    """
    if not partial > 0.0:
        raise ValueError(f"tuning.partial is {partial:g}: expected a share of the epochs, above 0")
    steps = thaws(groups, order)
    short = replace(stage.stop, epochs=stage.stop.epochs * partial)
    stages, thawed = [], set()
    for number, step in enumerate(steps, 1):
        thawed |= set(step)
        name = f"{stage.name}/{step[0]}" + (f"..{step[-1]}" if len(step) > 1 else "")
        stages.append(
            replace(
                stage,
                name=stage.name if step == groups and len(groups) > 1 else name,
                # In the order of the groups, so that equal sets give equal programs.
                trainable=tuple(group for group in groups if group in thawed),
                stop=stage.stop if number == len(steps) else short,
                fresh=stage.fresh if number == 1 else (),
            )
        )
    return tuple(stages)


def describe(stages: tuple[Stage, ...]) -> str:
    """The stages as a table for people: loss, trainable, watched figure, schedule."""
    head = ("", "stage", "loss", "trainable", "labelled", "watches", "schedule")
    rows = [head]
    for number, stage in enumerate(stages, 1):
        fresh = f" (fresh: {', '.join(stage.fresh)})" if stage.fresh else ""
        rows.append(
            (
                str(number),
                stage.name,
                " + ".join(
                    t.loss if t.weight == 1 else f"{t.weight:g}·{t.loss}" for t in stage.terms
                ),
                ", ".join(stage.trainable) + fresh,
                f"{stage.labelled_fraction:.0%}",
                stage.watched.replace("_", " "),
                f"{_rates(stage.schedule)}, {stage.stop.epochs:g} epochs, "
                f"patience {stage.stop.patience}",
            )
        )
    sizes = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip()
        for row in rows
    )


def _rates(schedule: Schedule) -> str:
    text = f"{schedule.decay} {schedule.peak:g}"
    if schedule.decay == "restarts":
        text += f" (period {schedule.period:g}, ×{schedule.period_mult:g})"
    return text + (" by epoch" if schedule.every == "epoch" else "")
