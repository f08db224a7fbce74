"""What the tables take at full size, by arithmetic: a script.

    python experiments/costs.py                         # on a v5e of eight chips
    python experiments/costs.py --chip v6e --chips 32

The text of the paper's setting isn't here, so its length is that of ours, cut by mBERT: a sentence
of WikiAnn has 15.2 pieces, a line of Wikipedia 24; the lengths of Table 9's texts are guesses. No
stage is taken to stop early. Teachers and caches count once for all rows of a file that share them.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from xdistil_jax import Experiment
from xdistil_jax.chips import Chip, read_chip
from xdistil_jax.counting import planned_student, student_sizes
from xdistil_jax.estimate import Counts, Phase, Text, estimate
from xdistil_jax.experiment import settings
from xdistil_jax.planning import table
from xdistil_jax.sizes import TeacherSizes
from xdistil_jax.study import Study, load_study
from xdistil_jax.terminal import told

LABELLED, LANGUAGES, CLASSES = 705_000, 41, 7
WIKIANN, WIKIPEDIA = 15.2, 24.0
"""Pieces of a sentence, as `xdistil plan experiments/wikiann.py --estimate` counts them."""
PADDED, WIDTH = 1.22, 22.0
"""Slots a piece, and their mean width, as there."""
VOCAB = 88_500
MBERT = TeacherSizes("mBERT", 119_547, 768, 12, 3072)
BERT = {
    "bert-base-uncased": TeacherSizes("BERT-base", 30_522, 768, 12, 3072),
    "bert-large-uncased": TeacherSizes("BERT-large", 30_522, 1024, 24, 4096),
}
CLASSIFIED = {
    "ag": (120_000, 0, 4, 50.0),
    "imdb": (25_000, 50_000, 2, 220.0),
    "elec": (25_000, 200_000, 2, 130.0),
    "dbpedia": (560_000, 0, 14, 65.0),
}
"""Table 9: texts with and without a class, after the paper; classes; pieces of a text, guessed."""
HERE = Path(__file__).parent


def text(sentences: int, lines: int = 0) -> Text:
    """Sentences of WikiAnn and lines of Wikipedia."""
    pieces = int(sentences * WIKIANN + lines * WIKIPEDIA)
    return Text(sentences + lines, pieces, int(pieces * PADDED), WIDTH)


def counts(experiment: Experiment) -> Counts:
    """The text of a row of a full study; the transfer set has that of all labelled sentences."""
    if experiment.name in CLASSIFIED:
        labelled, others, classes, length = CLASSIFIED[experiment.name]
        train, transfer = (
            Text(texts, int(texts * length), int(texts * length * PADDED), length)
            for texts in (labelled, labelled + others)
        )
        vocab = BERT[experiment.teacher.checkpoint].vocab
        return Counts(train, transfer, transfer, vocab, classes, "by arithmetic")
    few = experiment.data.labels_per_language
    labelled = few * LANGUAGES if few else LABELLED
    size = experiment.data.transfer_limit or LABELLED
    transfer = text(min(size, LABELLED), max(size - LABELLED, 0))
    return Counts(text(labelled), transfer, transfer, VOCAB, CLASSES, "by arithmetic")


def phases(study: Study, chip: Chip, chips: int) -> Iterator[tuple[str, Phase]]:
    """(what it is a part of, phase); what rows share comes once."""
    known: set[str] = set()
    for variant in study.variants:
        experiment = variant.experiment
        found = counts(experiment)
        sizes = BERT.get(experiment.teacher.checkpoint, MBERT)
        student = student_sizes(planned_student(experiment, found.vocab, found.classes, [sizes]))
        for phase in estimate(experiment, found, (sizes,), student, chip, chips).phases:
            teacher = {**settings(experiment.teacher), "layer": 0, "hidden_layers": ()}
            shared = {
                f"fine-tune {sizes.name}": f"{teacher} {found.train}",
                "cache": f"{settings(experiment.teacher)} {found.train} {found.transfer}",
            }.get(phase.name)
            if shared is None:
                yield "students", phase
            elif phase.name + shared not in known:
                known.add(phase.name + shared)
                yield phase.name.split()[0], phase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chip", default="v5e", help="a chip of xdistil_jax/chips.json")
    parser.add_argument("--chips", type=int, default=8)
    given = parser.parse_args()
    chip = read_chip(given.chip)
    rows = [("table", "runs", "teachers", "caches", "chip-hours", "hours", "$")]
    files = sorted(HERE.glob("table*.py"), key=lambda file: int(file.stem[5:]))
    for file in files:
        if file.stem == "table4":
            continue
        study = load_study(str(file), "full")
        found = list(phases(study, chip, given.chips))
        parts = [part for part, _ in found]
        hours = sum(phase.chip_hours for _, phase in found)
        price = "?" if chip.usd_per_hour is None else f"{hours * chip.usd_per_hour:.0f}"
        rows.append(
            (
                *(file.stem.removeprefix("table"), f"{len(study.variants) * len(study.seeds)}"),
                *(f"{parts.count('fine-tune')}", f"{parts.count('cache')}"),
                *(f"{hours:.1f}", f"{hours / given.chips:.1f}", price),
            )
        )
    print(table(rows))


if __name__ == "__main__":
    with told("costs.py"):
        main()
