"""The whole pipeline on the embedded corpus: teacher, label-only student, distilled student."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdistil_jax import files, hosts, storage
from xdistil_jax.configs import RunConfig, StudentConfig, TeacherConfig
from xdistil_jax.data.corpus import DataSpec
from xdistil_jax.distill.loop import StopFlag, Writer
from xdistil_jax.distill.stages import Schedule, StopRule
from xdistil_jax.distill.strategies import Recipe, Tuning
from xdistil_jax.evaluation import compose_rows
from xdistil_jax.experiment import Experiment
from xdistil_jax.pipeline import run
from xdistil_jax.report import compilations, page

CAVEAT = "Synthetic text proves the pipeline, not the quality of a student."


def experiment(strategy: str, *, out: str = "runs", seed: int = 0) -> Experiment:
    """41 languages, 25 labelled sentences each; about 400 more without labels.

    With the corpus's full 100 the two students come out alike: synthetic text is soon learned.
    """
    return Experiment(
        name="quickstart",
        strategy=strategy,
        data=DataSpec(synthetic=True, train_limit=25, seed=seed),
        teacher=TeacherConfig(
            vocab_size=6000,
            width=128,
            layers=2,
            heads=4,
            feed_forward=512,
            dropout=0.0,
            word_dropout=0.2,
            max_length=64,
            token_budget=2048,
            recipe=Recipe(
                Schedule(peak=3e-3, warmup=0.1, decay="linear", weight_decay=0.01),
                StopRule(epochs=24, evaluations=0.125, patience=3),
            ),
        ),
        student=StudentConfig(embed=50, hidden=100, projection="linear"),
        tuning=Tuning(
            repr=Recipe(Schedule(peak=3e-3), StopRule(epochs=1, patience=2)),
            logit=Recipe(Schedule(peak=3e-3), StopRule(epochs=4, evaluations=0.5, patience=2)),
            ce=Recipe(Schedule(peak=3e-3), StopRule(epochs=24, evaluations=0.25, patience=3)),
        ),
        run=RunConfig(out=out, seed=seed, buckets=2, held_out=500),
    )


@dataclass(frozen=True)
class Quickstart:
    """The tables for the terminal, and where the page and the runs lie."""

    table: str
    compilations: str
    page: Path
    folders: tuple[Path, ...]


def quickstart(
    *,
    out: str = "runs",
    seed: int = 0,
    say: Callable[[str], None] = lambda message: None,
    progress: Writer | None = None,
    stop: StopFlag | None = None,
) -> Quickstart:
    """Run both students against one teacher, and score all three on the test sentences."""
    rows: list[page.Row] = []
    folders: list[Path] = []
    reports: list[dict[str, Any]] = []
    for name, strategy in (("label-only", "D0-S"), ("distilled", "D4.1")):
        say(f"{name} student ({strategy})")
        chosen = experiment(strategy, out=out, seed=seed)
        result = run(chosen, evaluate_test=True, say=say, progress=progress, stop=stop)
        figures, latency = result.report["figures"]["test"], result.report["latency"]
        teacher, student = compose_rows(figures, latency)
        rows += [teacher] * (not rows) + [student._replace(name=name)]
        folders.append(result.folder)
        reports.append(result.report)
    path = storage.local(out) / "quickstart" / "report.md"
    joint = page.compose(
        rows,
        title="Quickstart: 41 languages, synthetic text",
        split="test",
        test_readings=max(report["test_readings"] for report in reports),
        seed=seed,
        configuration=reports[-1]["configuration"],
        versions=reports[-1]["versions"],
        latency=reports[-1]["latency"],
        notes=[CAVEAT],
    )
    hosts.once(lambda: files.write_atomic(path, page.render(joint)))
    return Quickstart(page.table(rows), compilations.table(*reports), path, tuple(folders))
