"""When to stop: patience and best-so-far, a pure function of the figures seen; and on request."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from xdistil_jax.distill.stages import Stage


class Stopping(NamedTuple):
    """What the evaluations of a stage have shown. ``best`` is a score: higher is better."""

    best: float = float("-inf")
    best_step: int = -1
    since: int = 0

    def observe(self, score: float, step: int) -> "Stopping":
        """The state after one more evaluation; a tie, or NaN, keeps the earlier best."""
        if score > self.best:
            return Stopping(score, step, 0)
        return self._replace(since=self.since + 1)

    def improved(self, step: int) -> bool:
        """Was the evaluation at ``step`` the best so far?"""
        return self.best_step == step

    def exhausted(self, patience: int) -> bool:
        """Have ``patience`` evaluations passed without a better one?"""
        return self.since >= patience


def score(watched: str, value: float) -> float:
    """Losses count downwards, F1 upwards."""
    return -value if watched.endswith("loss") else value


def refuse_divergence(stage: Stage, step: int, figures: Mapping[str, Any]) -> None:
    """Refuse a stage whose last figures, what it watches and its own losses, aren't finite.

    Then its parameters aren't either, whatever the best ones before were. An F1 stays finite.

    Raises:
        ValueError: naming the stage, the step and what to change.
    """
    for name in ("watched", *(f"train/{term.loss}" for term in stage.terms)):
        if not math.isfinite(value := figures.get(name, 0.0)):
            shown = stage.watched if name == "watched" else name
            raise ValueError(
                f"stage {stage.name!r} has diverged: at step {step:,} its {shown} is {value}, "
                f"expected a finite number; lower its schedule.peak, {stage.schedule.peak:g}"
            )


@dataclass
class StopFlag:
    """Raised by a signal handler (or a sweep's pruner), read between calls.

    ``deadline``, by ``time.monotonic``, is when it is up by itself.
    """

    raised: bool = False
    listening: bool = False
    deadline: float = math.inf

    @property
    def is_up(self) -> bool:
        """Is the run asked to stop?"""
        return self.raised or time.monotonic() >= self.deadline
