"""A table of runs: variants of an experiment, each at several seeds, that share what they can.

``xdistil table FILE`` conducts the study of a file. Every run of it lies in its own run folder and
is found again there, so a study that was killed or grew a row goes on with the same command.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from xdistil_jax.experiment import Experiment, Result
from xdistil_jax.report.compare import Comparison, counts_path, paired_bootstrap, read_counts
from xdistil_jax.report.findings import Finding, table, verdicts

_TERMS = (
    "What is kept, and smaller, refer to the run's own teacher. ± are population deviations, of "
    "languages and of seeds apart; seeds are the student's, and the teacher is one. Unseen: "
    "sentences that stand in neither train nor transfer text. Figures of the paper are context, no "
    "comparison: 41 languages with mBERT, unless said otherwise."
)


@dataclass(frozen=True)
class Variant:
    """A row of a study; ``paper`` is what the paper's table says there.

    ``seeds`` are those of the study's that it is run with (empty: all of them).
    """

    name: str
    experiment: Experiment
    paper: str = ""
    seeds: tuple[int, ...] = ()


def varied(base: Any, **changes: Any) -> Any:
    """A frozen dataclass, such as an ``Experiment``, with some fields changed.

    Those of its parts by a mapping of their own:
    ``varied(base, strategy="D1", student={"embedding": "pca"}, tuning={"ce": {"stop": {…}}})``.
    """
    parts = {
        name: varied(getattr(base, name), **each) if isinstance(each, Mapping) else each
        for name, each in changes.items()
    }
    return replace(base, **parts)


@dataclass(frozen=True)
class Study:
    """What stands in a table, and what is expected of it.

    ``orders`` are hypotheses, (the better, the worse) by the names of their variants; ``note`` is
    what readers must know beside the figures; with ``by_language`` each language has a column.
    """

    title: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0,)
    orders: tuple[tuple[str, str], ...] = ()
    note: str = ""
    by_language: bool = False

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"{self.title!r}: expected variants of different names, found {names}")
        if unknown := {name for order in self.orders for name in order} - set(names):
            raise ValueError(
                f"{self.title!r}: orders name {', '.join(sorted(unknown))}; there are {names}"
            )
        of = {row.name: set(row.seeds or self.seeds) for row in self.variants}
        if apart := [order for order in self.orders if not of[order[0]] & of[order[1]]]:
            raise ValueError(
                f"{self.title!r}: rows {' and '.join(map(repr, apart[0]))} are to be compared, but "
                "have no seed in common"
            )
        for row in self.variants:
            if strange := set(row.seeds) - set(self.seeds):
                raise ValueError(
                    f"{self.title!r}: row {row.name!r} has seed {min(strange)}, the study "
                    f"{self.seeds}"
                )

    def at(self, seeds: Sequence[int]) -> "Study":
        """The study with every row at these seeds; as it is where none is given."""
        if not seeds:
            return self
        rows = tuple(replace(variant, seeds=()) for variant in self.variants)
        return replace(self, variants=rows, seeds=tuple(seeds))

    def only(self, names: Sequence[str]) -> "Study":
        """The study with these variants alone; all of them where no name is given.

        Raises:
            ValueError: for a name that it doesn't have.
        """
        known = [variant.name for variant in self.variants]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{self.title!r} has no row {unknown[0]!r}; it has {', '.join(known)}")
        kept = [name for name in known if name in names or not names]
        return replace(
            self,
            variants=tuple(variant for variant in self.variants if variant.name in kept),
            orders=tuple(order for order in self.orders if set(order) <= set(kept)),
        )


@dataclass(frozen=True)
class TableArguments:
    """The runs of a study, each found again if it is there, and their table."""

    size: str = "small"
    """Which study of the file: small fits two cores, full is the paper's."""
    seeds: tuple[int, ...] = ()
    """Empty: the study's own."""
    only: tuple[str, ...] = ()
    """Rows, by name."""


def conduct(
    study: Study,
    *,
    say: Callable[[str], None] = lambda message: None,
    **options: Any,
) -> dict[str, list[Result]]:
    """Every variant at all of its seeds: name -> results in the order of ``study.seeds``.

    ``options`` are those of ``pipeline.run``. The first seed of all variants comes first, so that a
    table is there early.
    """
    from xdistil_jax.pipeline import run

    found: dict[str, list[Result]] = {variant.name: [] for variant in study.variants}
    for seed, variant in product(study.seeds, study.variants):
        if variant.seeds and seed not in variant.seeds:
            continue
        say(f"{study.title}: {variant.name}, seed {seed}")
        chosen = replace(variant.experiment, run=replace(variant.experiment.run, seed=seed))
        found[variant.name].append(run(chosen, say=say, **options))
    return found


def report(study: Study, results: Mapping[str, Sequence[Result]]) -> str:
    """The study's table and what it says of the hypotheses, as Markdown."""
    found = {
        name: [Finding.of(each.report, student_pieces(each.folder)) for each in every]
        for name, every in results.items()
    }
    paper = {variant.name: variant.paper for variant in study.variants}
    text = table(found, paper, by_language=study.by_language)
    parts = (f"## {study.title}", _TERMS, study.note, text, verdicts(_compared(study, results)))
    return "\n\n".join(each for each in parts if each) + "\n"


def _compared(
    study: Study, results: Mapping[str, Sequence[Result]]
) -> dict[tuple[str, str], Comparison]:
    """Each of the study's hypotheses, on test where it was read, else on dev; at common seeds."""
    found = {}
    for order in study.orders:
        common = set.intersection(*({_seed(each) for each in results[name]} for name in order))
        counts, languages = [], []
        for name in order:
            taken = [each for each in results[name] if _seed(each) in common]
            each = [read_counts(_counts_of(result)) for result in taken]
            counts.append([rows for rows, _ in each])
            languages = each[0][1]
        found[order] = paired_bootstrap(*counts, languages)
    return found


def _seed(result: Result) -> int:
    return result.report["seed"]


def _counts_of(result: Result) -> Path:
    figures = result.report["figures"]
    return counts_path(result.folder, figures.get("test", figures["dev"])["sentences"])


def student_pieces(folder: Path) -> int:
    """How many pieces the student has been trained on, in all stages, after ``metrics.jsonl``.

    All students, where there is one for each language.
    """
    by_stage: dict[tuple[Path, int], int] = {}
    for path in (*folder.glob("metrics.jsonl"), *folder.glob("*/metrics.jsonl")):
        for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            by_stage[path, record["stage"]] = record["pieces"]
    return sum(by_stage.values())


def load_study(path: str, size: str) -> Study:
    """The study called ``size`` (``small``, ``full``) of a Python file.

    Raises:
        FileNotFoundError: with the files that are there.
        ValueError: if the file has no such study.
    """
    from xdistil_jax.planning import load_file

    module: Mapping[str, Any] = load_file(path)
    studies = {name: each for name, each in module.items() if isinstance(each, Study)}
    if size not in studies:
        there = ", ".join(sorted(studies)) or "none"
        raise ValueError(f"{path} has no study `{size}`: expected {size} = Study(…), found {there}")
    return studies[size]
