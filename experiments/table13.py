"""Table 13: dropout of the student.

xdistil table experiments/table13.py --test                # English
xdistil table experiments/table13.py --size full --test    # the paper's; hub, accelerator
"""

import full as paper
from table3 import TEXT

from xdistil_jax import Experiment
from xdistil_jax.study import Study, Variant, varied

PAPER = {1e-4: "87.9", 0.1: "88.4", 0.2: "88.5", 0.3: "88.5", 0.6: "87.3", 0.8: "85.5"}
ORDERS = (("dropout 0.2", "dropout 0.0001"), ("dropout 0.2", "dropout 0.6"))


def rows(base: Experiment, rates: tuple[float, ...]) -> tuple[Variant, ...]:
    """A row for each rate."""
    return tuple(
        Variant(f"dropout {rate:g}", varied(base, student={"dropout": rate}), PAPER[rate])
        for rate in rates
    )


ENGLISH = varied(TEXT, strategy="D4.1")
small = Study(
    "Table 13, English, D4.1, the text of the 20,000 labelled sentences",
    rows(ENGLISH, (1e-4, 0.2, 0.6)),
    orders=ORDERS,
    note=paper.context("en"),
)
full = Study(
    "Table 13, 41 languages",
    rows(paper.experiment, tuple(PAPER)),
    orders=ORDERS,
    note=paper.context(),
)
