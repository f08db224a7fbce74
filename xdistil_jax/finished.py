"""A finished run: its student's folder, and what the student was made from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdistil_jax import storage
from xdistil_jax.data.corpus import Corpus, Sentence, load_corpus
from xdistil_jax.evaluation import identity_of, read_report
from xdistil_jax.experiment import Experiment, restore


@dataclass(frozen=True)
class Finished:
    """A run folder's student, and what it was made from."""

    folder: Path
    experiment: Experiment
    corpus: Corpus
    dev: tuple[Sentence, ...]
    report: dict[str, Any]


def find_finished(run: str | Path) -> Finished:
    """The run in a folder, with the dev set that chose its student.

    Raises:
        StorageError: if it is in a bucket that can't be read.
        ValueError: if there is no finished run, or its data have changed since.
    """
    folder = storage.find_run(run, writes=False).resolve()
    folder = folder.parent if folder.name == "student" else folder
    shown = storage.shown(folder)
    if not (folder / "student").is_dir():
        members = sorted(each.parent.name for each in folder.glob("*/student"))
        if members:
            raise ValueError(
                f"{shown} has a student for each of {', '.join(members)}: export one, such as "
                f"{shown}/{members[0]}"
            )
        raise ValueError(f"{shown} is no finished run: it has no student")
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{shown} is no run folder: config.json is missing, and with it the data")
    experiment = restore(json.loads(path.read_text(encoding="utf-8")))
    corpus = load_corpus(experiment.data)
    alone = folder.name if experiment.is_per_language else None
    dev = tuple(each for each in corpus.dev if alone in (None, each.language))
    report = read_report(folder)
    known = report.get("figures", {}).get("dev", {}).get("sentences")
    if known is not None and known != identity_of(dev):
        raise ValueError(f"the dev set of {shown} has changed since: put the data back")
    return Finished(folder, experiment, corpus, dev, report)


def describe_data(found: Finished) -> list[str]:
    """How much text, and where it is from."""
    data, corpus = found.experiment.data, found.corpus
    source = "the embedded corpus" if data.synthetic else data.train or data.root
    transfer = f", {len(corpus.transfer):,} for transfer" if len(corpus.transfer) else ""
    return [
        f"{source}: {len(corpus.train):,} labelled sentences{transfer}; "
        f"{len(found.dev):,} dev sentences"
    ]


def languages_of(found: Finished) -> list[str]:
    """Those that are known."""
    return [each for each in found.corpus.languages if each != "und"]


def datasets_of(found: Finished) -> list[str]:
    """Names on the Hub."""
    data = found.experiment.data
    places = (data.train, data.root)
    return sorted({each.split(":")[1] for each in places if each.startswith("hf:")})


def name_teacher(found: Finished) -> str:
    """What taught the student, and its dev figure."""
    config = found.experiment.teacher
    name = config.checkpoint or config.outputs or "trained from scratch on the same data"
    if others := [each.checkpoint or each.outputs for each in found.experiment.ensemble.teachers]:
        name = ", ".join([name, *others])
    models = found.report.get("figures", {}).get("dev", {}).get("models", {})
    scores = models.get("teacher", {}).get("scores", {})
    if scores.get("mean") is not None:
        figure = "accuracy" if "classes" in scores else "F1"
        name += f" (dev {figure} {scores['mean']:.2f})"
    return name
