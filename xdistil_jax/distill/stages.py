"""Stages as values: what is minimised, what is trainable, for how long. Imports no jax.

A strategy is a tuple of stages; the engine runs any such tuple and never asks for its name.
"""

from dataclasses import dataclass, replace
from typing import Literal

Loss = Literal["repr", "repr_kl", "logit", "logit_all", "logit_kl", "ce", "attention"]
Decay = Literal["cosine", "linear", "constant"]
Watch = Literal["auto", "transfer_loss", "dev_f1"]


@dataclass(frozen=True)
class Term:
    """One loss of a stage and its weight (α, β, γ of equation 7)."""

    loss: Loss
    weight: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """AdamW with linear warm-up to ``peak`` and a decay to ``floor`` at the last step.

    ``warmup`` is a share of the stage's steps; ``clip`` bounds the global norm of the gradient of
    the trainable parameters; ``weight_decay`` leaves vectors alone.
    """

    peak: float = 1e-3
    warmup: float = 0.05
    decay: Decay = "cosine"
    floor: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0


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
    afresh unless ``carry``: then parameters that the stage before trained too keep theirs.
    """

    name: str
    terms: tuple[Term, ...]
    trainable: tuple[str, ...]
    labelled_fraction: float = 0.0
    schedule: Schedule = Schedule()
    stop: StopRule = StopRule()
    carry: bool = False

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


def unfreeze(stage: Stage, groups: tuple[str, ...], *, partial: float = 1.0) -> tuple[Stage, ...]:
    """Gradual unfreezing: one stage for each growing prefix of ``groups``, from the top down.

    All but the last get ``partial`` of the epochs.
    """
    short = replace(stage.stop, epochs=stage.stop.epochs * partial)
    return tuple(
        replace(
            stage,
            name=f"{stage.name}/{group}",
            trainable=groups[: depth + 1],
            stop=stage.stop if depth == len(groups) - 1 else short,
        )
        for depth, group in enumerate(groups)
    )


def describe(stages: tuple[Stage, ...]) -> str:
    """The stages as a table for people: loss, trainable, watched figure, schedule."""
    head = ("", "stage", "loss", "trainable", "labelled", "watches", "schedule")
    rows = [head]
    for number, stage in enumerate(stages, 1):
        schedule = stage.schedule
        rows.append(
            (
                str(number),
                stage.name,
                " + ".join(
                    t.loss if t.weight == 1 else f"{t.weight:g}·{t.loss}" for t in stage.terms
                ),
                ", ".join(stage.trainable),
                f"{stage.labelled_fraction:.0%}",
                stage.watched.replace("_", " "),
                f"{schedule.decay} {schedule.peak:g}, {stage.stop.epochs:g} epochs, "
                f"patience {stage.stop.patience}",
            )
        )
    sizes = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip()
        for row in rows
    )
