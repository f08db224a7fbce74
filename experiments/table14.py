"""Table 14: the size of a batch.

    xdistil table experiments/table14.py --test                # English
    xdistil table experiments/table14.py --size full --test    # the paper's; hub, accelerator

The paper counts sentences of 32 pieces, we the padded pieces of a batch (run.token_budget).
"""

import full as paper
from table3 import TEXT

from xdistil_jax import Experiment
from xdistil_jax.study import Study, Variant, varied

PAPER = {128: "88.0", 512: "88.4", 1024: "88.2", 2048: "88.1", 4096: "87.6"}


def rows(base: Experiment, sentences: tuple[int, ...]) -> tuple[Variant, ...]:
    """A row for each number of sentences of 32 pieces."""
    return tuple(
        Variant(f"{n} × 32", varied(base, run={"token_budget": 32 * n}), PAPER.get(n, ""))
        for n in sentences
    )


ENGLISH = varied(TEXT, strategy="D4.1")


def longer(base: Experiment, times: float) -> Experiment:
    """So many times the epochs, in every stage of D4.1."""
    stages = {name: getattr(base.tuning, name).stop.epochs for name in ("repr", "logit", "ce")}
    stops = {name: {"stop": {"epochs": times * epochs}} for name, epochs in stages.items()}
    return varied(base, tuning=stops)


(row,) = rows(ENGLISH, (48,))
small = Study(
    "Table 14, English, D4.1, the text of the 20,000 labelled sentences",
    (
        *rows(ENGLISH, (12, 48, 128)),
        Variant(f"{row.name}, the steps of 12 × 32", longer(row.experiment, 4.0)),
    ),
    orders=(
        ("48 × 32", "12 × 32"),
        ("48 × 32", "128 × 32"),
        ("48 × 32, the steps of 12 × 32", "12 × 32"),
    ),
    note=paper.context("en"),
)
full = Study(
    "Table 14, 41 languages",
    rows(paper.experiment, tuple(PAPER)),
    orders=(("512 × 32", "128 × 32"), ("512 × 32", "4096 × 32")),
    note=paper.context(),
)
