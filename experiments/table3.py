"""Table 3: every strategy, at several sizes of transfer text.

xdistil table experiments/table3.py --test                     # English, 70,000 sentences
xdistil table experiments/table3.py --size others --test       # the other strategies there
xdistil table experiments/table3.py --size text --test         # 20,000 sentences
xdistil table experiments/table3.py --size languages --test    # ten languages, D0 among them
xdistil table experiments/table3.py --size full --test         # the paper's; hub, accelerator
"""

import english
import full as paper
import wikiann

from xdistil_jax import Experiment
from xdistil_jax.study import Study, Variant, varied

FIGURES = {
    "D0": ("71.3",),
    "D0-S": ("81.4",),
    "D1": ("82.7", "84.5", "85.9"),
    "D2": ("82.4", "83.8", "85.9"),
    "D3.1": ("83.1", "84.4", "86.4"),
    "D3.2": ("86.8", "87.8", "88.3"),
    "D4.1": ("84.8", "87.1", "87.9"),
    "D4.2": ("87.1", "88.6", "88.5"),
}
"""F1 with 0.7, 1.4 and 7.2 million transfer sentences."""
ORDERS = (
    ("D1", "D0-S"),
    ("D4.1", "D1"),
    ("D4.2", "D4.1"),
    ("D3.2", "D3.1"),
    ("D4.2", "D3.2"),
)
NOTE = (
    "F1 kept and compression refer to the run's own teacher. The paper's column is context, in 41 "
    "languages with mBERT as teacher, and no comparison."
)
ENGLISH = varied(english.experiment, run={"latency": False})
PLAIN = varied(ENGLISH, data={"unlabelled_root": ""})
TEN = varied(wikiann.experiment, run={"latency": False})


def label_only(base: Experiment) -> Experiment:
    """Labels alone, from random embeddings, with a recipe of its own."""
    recipe = {"schedule": {"peak": 1e-3}, "stop": {"epochs": 6.0, "evaluations": 1.0}}
    return varied(base, strategy="D0-S", student={"embedding": "random"}, tuning={"ce": recipe})


def rows(base: Experiment, names: tuple[str, ...], column: int, tail: str = "") -> list[Variant]:
    """A row for each strategy; of D0 and D0-S the paper has one figure."""
    found = []
    for name in names:
        figures = FIGURES.get(name, ())
        chosen = label_only(base) if name == "D0-S" else varied(base, strategy=name)
        shown = figures[min(column, len(figures) - 1)] if figures else ""
        found.append(Variant(name + tail, chosen, shown))
    return found


MAIN = ("D0-S", "D1", "D3.1", "D3.2", "D4.1", "D4.2")
REST = ("D2", "logit-ce", "repr-logit")
small = Study(
    "Table 3, English, 70,000 transfer sentences",
    tuple(rows(ENGLISH, MAIN, 1)),
    seeds=(0, 1, 2),
    orders=ORDERS,
    note=NOTE,
)
others = Study(
    "Table 3, English, 70,000 transfer sentences: the other strategies",
    tuple(rows(ENGLISH, REST, 1)),
    note=NOTE,
)
text = Study(
    "Table 3, English, the text of the 20,000 labelled sentences alone",
    tuple(rows(PLAIN, MAIN[1:], 0)),
    seeds=(0, 1, 2),
    orders=ORDERS[1:],
    note=NOTE,
)
languages = Study(
    "Table 3, ten languages",
    tuple(rows(TEN, ("D0", *MAIN, "logit-ce"), 0)),
    orders=(("D0-S", "D0"), *ORDERS),
    note=NOTE,
    by_language=True,
)
full = Study(
    "Table 3, 41 languages",
    tuple(
        row
        for column, size in enumerate((700_000, 1_400_000, 7_200_000))
        for row in rows(
            varied(paper.experiment, data={"transfer_limit": size}),
            tuple(FIGURES) if column == 0 else tuple(FIGURES)[2:],
            column,
            f", {size / 1e6:.1f}M",
        )
    ),
    note=NOTE,
)
