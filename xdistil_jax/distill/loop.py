"""The host's side of training: evaluate, log, save, stop, step - in that order.

All effects on the host happen at evaluation points, before the next step is dispatched; between
them the loop only dispatches calls and fetches the metrics of the call before, while what was saved
is being written. A figure is logged before it is saved, so the checkpoint's line count covers it
and a resumed run repeats no line.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
from jaxtyping import Array, PyTree

from xdistil_jax import hosts, trees
from xdistil_jax.compilation import make_room
from xdistil_jax.data.batches import Buckets, Sampler, Source
from xdistil_jax.data.encode import EncodedStore
from xdistil_jax.distill.checkpoint import Checkpoints, Saved
from xdistil_jax.distill.evaluate import HeldOut, TaggedSet, dev_f1
from xdistil_jax.distill.feed import Feeder, Streams
from xdistil_jax.distill.rates import HParams, hparams
from xdistil_jax.distill.resident import Resident
from xdistil_jax.distill.stages import Stage
from xdistil_jax.distill.state import Model, TrainState, merged, place, stage_state
from xdistil_jax.distill.step import CallMetrics, train_call
from xdistil_jax.distill.stopping import StopFlag as StopFlag
from xdistil_jax.distill.stopping import Stopping, refuse_divergence, score
from xdistil_jax.sharding import anywhere, replicate
from xdistil_jax.types import Params

fetch = jax.device_get
"""The one way from the devices to the host inside the loop, so that a test can count."""


class InterruptedRunError(RuntimeError):
    """The run was asked to stop, and has saved where it is."""


class Writer(Protocol):
    """Where figures go; ``report.writers`` has some."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def progress(self, record: Mapping[str, Any]) -> None: ...


class _Silent:
    def write(self, record: Mapping[str, Any]) -> None:
        """Nothing."""

    def progress(self, record: Mapping[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Training:
    """Everything that the stages of a plan share. It has no handle on a test set.

    With ``resident`` the batches are gathered on the devices, else they are streamed there. Without
    ``dev`` nothing is tagged: stages can only watch the loss on held-out text.
    """

    model: Model
    store: EncodedStore
    labelled: Source
    transfer: Source
    buckets: Buckets
    dev: TaggedSet | None
    teacher: Streams | None = None
    arrays: PyTree = ()
    held_out: HeldOut = HeldOut(())
    seed: int = 0
    steps_per_call: int = 16
    checkpoints: Checkpoints = field(default_factory=lambda: Checkpoints(None))
    writer: Writer = _Silent()
    stop: StopFlag = field(default_factory=StopFlag)
    resident: Resident | None = None


class StageResult(NamedTuple):
    """How a stage ended: the watched figure at its best, and where that was."""

    name: str
    watched: str
    best: float
    best_step: int
    steps: int


class PlanResult(NamedTuple):
    """The parameters after the last stage, and how each stage went."""

    params: Params
    stages: tuple[StageResult, ...]


@dataclass
class _Progress:
    """A stage under way: all that changes while it runs."""

    state: TrainState
    best: Params
    stopping: Stopping = Stopping()
    step: int = 0
    next_evaluation: int = 0
    pieces: int = 0
    sums: list[list[float]] = field(default_factory=list)


def run_plan(training: Training, stages: Sequence[Stage], params: Params) -> PlanResult:
    """Run the stages one after the other; with checkpoints, go on where the last run stopped.

    Args:
        params: the student's parameters before the first stage, fp32.

    Raises:
        InterruptedRunError: when ``training.stop`` was raised; the checkpoint has the position.
        distill.checkpoint.CheckpointError: for one that can't be read or written.
        trees.PatternError: for a stage whose patterns match no parameter.
        ValueError: for a stage that diverges, or has nothing to watch.
    """
    stages = tuple(stages)
    for stage in stages:
        trees.mask(params, (*stage.trainable, *stage.fresh))
    results: list[StageResult] = []
    first, records, global_step, under_way = 0, 0, 0, False
    carried = None
    params = place(training.model, hosts.from_primary(params))
    saved = training.checkpoints.peek()
    if saved is not None:
        first, records, global_step = saved["stage"], saved["records"], saved["global_step"]
        results = [StageResult(*each) for each in saved["results"]]
        under_way = not saved["done"]
        if saved["done"]:
            run = _StageRun(training, stages, first, results, records, global_step)
            state = training.checkpoints.load(run.fresh(params, None)).state
            params, carried = merged(state), state.opt_state
            first += 1
    for index in range(first, len(stages)):
        make_room()
        run = _StageRun(training, stages, index, results, records, global_step)
        state = run.run(params, carried if stages[index].carry else None, resume=under_way)
        params, carried, under_way = merged(state), state.opt_state, False
        results, records, global_step = run.results, run.records, run.global_step
    training.checkpoints.wait()
    return PlanResult(params, tuple(results))


class _StageRun:
    """One stage of a plan."""

    def __init__(
        self,
        training: Training,
        stages: tuple[Stage, ...],
        index: int,
        results: list[StageResult],
        records: int,
        global_step: int,
    ) -> None:
        self.training, self.stages, self.index = training, stages, index
        self.results, self.records, self.global_step = list(results), records, global_step
        self.stage = stages[index]
        self.sampler = Sampler(
            training.buckets,
            training.labelled,
            training.transfer,
            self.stage.labelled_fraction,
            training.seed,
            index,
        )
        stop = self.stage.stop
        steps = self.sampler.steps(stop.epochs)
        self.total = max(steps, stop.min_steps)
        # Where the steps are more than the epochs have, the evaluations lie farther apart.
        epoch = self.sampler.epoch_size(0)
        every = epoch / stop.evaluations * self.total / steps
        self.every = max(1, round(every))
        self._clock = time.monotonic()
        self._question: Array | None = None
        self.h: HParams = replicate(hparams(self.stage, self.total, epoch), training.model.mesh)

    def fresh(self, params: Params, carried: PyTree) -> TrainState:
        """The state before the first step, on the mesh."""
        key = jax.random.fold_in(jax.random.key(self.training.seed), self.index)
        return stage_state(self.training.model, self.stage, params, key, self.h, carried)

    def run(self, params: Params, carried: PyTree, *, resume: bool) -> TrainState:
        """From the first step, or from the checkpoint, to the best parameters of the stage."""
        training = self.training
        now = self._begin(self.fresh(params, carried), resume=resume)
        feeder = Feeder(
            training.store,
            training.buckets,
            training.teacher,
            training.model.mesh,
            training.steps_per_call,
            training.resident,
        )
        call_steps = train_call(training.model, self.stage.program)
        calls = self.sampler.calls(now.step, training.steps_per_call)
        pending: tuple[CallMetrics, int] | None = None
        while True:
            if now.step >= now.next_evaluation or now.step >= self.total:
                pending = self._settle(now, pending)
                figures = self._evaluate(now)
                over = now.step >= self.total or now.stopping.exhausted(self.stage.stop.patience)
                if over:
                    refuse_divergence(self.stage, now.step, figures)
                    return self._end(now)
                if hosts.primarys(training.checkpoints.due()):
                    self._save(now)
            if self._asked_to_stop():
                pending = self._settle(now, pending)
                self._save(now)
                training.checkpoints.wait()
                raise InterruptedRunError(
                    f"stage {self.index + 1}/{len(self.stages)}, step {now.step:,} saved; "
                    "repeat the command to go on"
                )
            call = next(calls)
            call = call._replace(rows=call.rows[: self.total - now.step])
            feed, pieces = feeder.feed(call, self.sampler.role(call.bucket))
            with jax.transfer_guard("disallow"):
                now.state, metrics = call_steps(now.state, training.arrays, feed, self.h)
            before, pending = pending, (metrics, pieces)
            now.step += len(call.rows)
            self.global_step += len(call.rows)
            self._settle(now, before)

    def _begin(self, state: TrainState, *, resume: bool) -> _Progress:
        empty = [[0.0, 0.0] for _ in self.stage.terms]
        if not resume:
            return _Progress(state, jax.tree.map(_copy, state.trainable), sums=empty)
        saved = self.training.checkpoints.load(state)
        host = saved.host
        return _Progress(
            place(self.training.model, saved.state), saved.best,
            Stopping(*host["stopping"]), host["step"], host["next_evaluation"], host["pieces"],
            [list(each) for each in host["sums"]],
        )  # fmt: skip

    def _asked_to_stop(self) -> bool:
        """Has anyone been asked to stop? All processes hear the same, a call late."""
        raised, mesh = self.training.stop.is_up, self.training.model.mesh
        if not hosts.several():
            return raised
        answer, self._question = self._question, anywhere(raised, mesh)
        return answer is not None and bool(fetch(answer))

    def _settle(self, now: _Progress, pending: tuple[CallMetrics, int] | None) -> None:
        """Fetch the metrics of a call that has been dispatched, one call late."""
        if pending is None:
            return
        metrics, pieces = pending
        means = fetch(metrics.means)
        for total, mean in zip(now.sums, means, strict=True):
            total[0] += float(mean.total)
            total[1] += float(mean.count)
        now.pieces += pieces
        loss = sum(
            term.weight * float(mean.total) / max(float(mean.count), 1.0)
            for term, mean in zip(self.stage.terms, means, strict=True)
        )
        rate = pieces / max(time.monotonic() - self._clock, 1e-9)
        self._clock = time.monotonic()
        self.training.writer.progress(
            {**self._place(now), "steps": self.total, "loss": loss, "tokens_per_s": rate}
        )

    def _place(self, now: _Progress) -> dict[str, Any]:
        return {
            "stage": self.index, "stages": len(self.stages), "stage_name": self.stage.name,
            "step": now.step, "global_step": self.global_step,
        }  # fmt: skip

    def _evaluate(self, now: _Progress) -> dict[str, Any]:
        training, stage = self.training, self.stage
        params = merged(now.state)
        figures: dict[str, float] = {}
        if training.dev is not None:
            model = training.model
            figures["dev/f1"] = dev_f1(model.student, model.dtype, params, training.dev)
        losses = stage.program.losses
        if training.held_out.feeds:
            held = training.held_out.means(training.model, losses, params, training.arrays)
            figures |= {f"held_out/{name}": value for name, value in held.items()}
        watched = self._watched(figures)
        now.stopping = now.stopping.observe(score(stage.watched, watched), now.step)
        if now.stopping.improved(now.step):
            now.best = jax.tree.map(_copy, now.state.trainable)
        for term, (total, count) in zip(stage.terms, now.sums, strict=True):
            if count:
                figures[f"train/{term.loss}"] = total / count
        record = {**self._place(now), **figures, "watched": watched, "pieces": now.pieces}
        training.writer.write(record)
        self.records += 1
        now.sums = [[0.0, 0.0] for _ in stage.terms]
        now.next_evaluation = now.step + self.every
        self._clock = time.monotonic()
        return record

    def _watched(self, figures: Mapping[str, float]) -> float:
        if self.stage.watched == "dev_f1":
            if "dev/f1" not in figures:
                raise ValueError(
                    f"stage {self.stage.name!r} watches dev F1, and there is no dev set"
                )
            return figures["dev/f1"]
        terms = [term for term in self.stage.terms if f"held_out/{term.loss}" in figures]
        if not terms:
            raise ValueError(
                f"stage {self.stage.name!r} watches the loss on held-out transfer text, and there "
                "is none: hold some out, or set its stop.watch to dev_f1"
            )
        return sum(term.weight * figures[f"held_out/{term.loss}"] for term in terms)

    def _end(self, now: _Progress) -> TrainState:
        """Best parameters restored; the checkpoint then points at the next stage."""
        stopping, watched = now.stopping, self.stage.watched
        best = score(watched, stopping.best)  # Twice is the identity: back to the figure itself.
        result = StageResult(self.stage.name, watched, best, stopping.best_step, now.step)
        self.results.append(result)
        now.state = now.state._replace(trainable=now.best)
        self._save(now, done=True)
        return now.state

    def _save(self, now: _Progress, *, done: bool = False) -> None:
        host = {
            "step": now.step, "next_evaluation": now.next_evaluation, "pieces": now.pieces,
            "sums": now.sums, "stopping": list(now.stopping), "records": self.records,
            "global_step": self.global_step, "results": [list(r) for r in self.results],
        }  # fmt: skip
        host["done"] = done
        self.training.checkpoints.save(Saved(self.index, now.state, now.best, host))


def _copy(leaf: Any) -> Any:
    return leaf.copy()
