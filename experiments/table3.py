"""Table 3: every strategy, at several sizes of transfer text.

xdistil table experiments/table3.py --test                     # English, 70,000 sentences
xdistil table experiments/table3.py --size others --test       # the other strategies there
xdistil table experiments/table3.py --size tried               # 20,000 sentences: three rates each
xdistil table experiments/table3.py --size text --test         # to convergence, at the best rates
xdistil table experiments/table3.py --size same --test         # all at equal numbers of pieces
xdistil table experiments/table3.py --size chosen --test       # transfer text of choose_text.py
xdistil table experiments/table3.py --size languages --test    # ten languages, D0 among them
xdistil table experiments/table3.py --size full --test         # the paper's; hub, accelerator
"""

from dataclasses import fields, replace

import english
import full as paper
import wikiann
from choose_text import CHOSEN, WORTHS

from xdistil_jax import Experiment, Recipe
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
MAIN = ("D0-S", "D1", "D3.1", "D3.2", "D4.1", "D4.2")
REST = ("D2", "logit-ce", "repr-logit")
LABELS = ("D0", "D0-S")
SVD = "D0-S, SVD"
"""Labels alone, from the teacher's embedding."""
BEST = {
    **{"D0": 4.0, "D0-S": 4.0, SVD: 2.0},
    **{"D1": 2.0, "D2": 1.0, "D3.1": 2.0, "D3.2": 2.0, "D4.1": 1.0, "D4.2": 2.0},
}
"""The best factors of the learning rates, on dev, of the three that `--size tried` tries.

D0 trains on labels alone, too, and has D0-S's. The other rates of ten languages are their own.
"""
ENGLISH = varied(english.experiment, run={"latency": False})
TEXT = varied(ENGLISH, data={"unlabelled_root": ""})
"""The text of the labelled sentences alone."""
CONVERGED = varied(
    TEXT,
    tuning={
        "repr": {"stop": {"epochs": 2.0}},
        "logit": {"stop": {"epochs": 8.0}},
        "joint": {"stop": {"epochs": 6.0}},
        "ce": {"stop": {"epochs": 4.0}},
    },
)
"""Epochs enough to converge."""
TEN = varied(wikiann.experiment, run={"latency": False})
LONGER = varied(TEN, tuning={"ce": {"schedule": {"peak": 2e-3}, "stop": {"epochs": 2.0}}})
TWICE = ", labels twice at 2e-3"


def label_only(base: Experiment, name: str = "D0-S", embedding: str = "random") -> Experiment:
    """Labels alone, with a recipe of its own; from random embeddings, as the paper's."""
    recipe = {"schedule": {"peak": 1e-3}, "stop": {"epochs": 6.0, "evaluations": 1.0}}
    return varied(base, strategy=name, student={"embedding": embedding}, tuning={"ce": recipe})


def rows(base: Experiment, names: tuple[str, ...], column: int, tail: str = "") -> list[Variant]:
    """A row for each strategy; of D0 and D0-S the paper has one figure."""
    found = []
    for name in names:
        figures = FIGURES.get(name, ())
        if name == SVD:
            chosen = label_only(base, embedding="svd")
        else:
            chosen = label_only(base, name) if name in LABELS else varied(base, strategy=name)
        shown = figures[min(column, len(figures) - 1)] if figures else ""
        found.append(Variant(name + tail, chosen, shown))
    return found


def scaled(experiment: Experiment, factor: float) -> Experiment:
    """Every learning rate of the student times ``factor``."""
    recipes = {
        field.name: {"schedule": {"peak": factor * recipe.schedule.peak}}
        for field in fields(experiment.tuning)
        if isinstance(recipe := getattr(experiment.tuning, field.name), Recipe)
    }
    return varied(experiment, tuning=recipes)


def trials(base: Experiment, names: tuple[str, ...]) -> list[Variant]:
    """A row for each strategy at each of three rates."""
    return [
        Variant(f"{row.name}, rates × {factor:g}", scaled(row.experiment, factor), row.paper)
        for row in rows(base, names, 0)
        for factor in (1.0, 2.0, 4.0)
    ]


def weighted(base: Experiment, tail: str = "") -> list[Variant]:
    """D2 with one of the three weights of its losses ten times the others (equation 7)."""
    (row,) = rows(base, ("D2",), 0)
    return [
        replace(
            row,
            name=f"D2, {sign} = 10{tail}",
            experiment=varied(row.experiment, tuning={name: 10.0}),
        )
        for sign, name in (("α", "alpha"), ("β", "beta"), ("γ", "gamma"))
    ]


def at_best(found: list[Variant], names: tuple[str, ...] = MAIN) -> list[Variant]:
    """The rows of strategies, of which these have the rates that were best on dev."""
    return [
        replace(row, experiment=scaled(row.experiment, BEST[row.name]))
        if row.name in names
        else row
        for row in found
    ]


def equal(base: Experiment) -> list[Variant]:
    """Each strategy with the pieces of D4.2: 9.25 times those of the labelled text.

    The transfer set has the same text, and an epoch of a joint stage reads both.
    """
    endless = 10**6
    tuning = {
        "D0-S": {"ce": 9.25},
        "D1": {"joint": 4.625},
        "D2": {"joint": 4.625},
        "D3.1": {"repr": 1.0, "joint": 4.125},
        "D3.2": {"repr": 1.0, "joint": 3.0},
        "D4.1": {"repr": 1.0, "logit": 5.5, "ce": 2.75},
        "D4.2": {"repr": 1.0, "logit": 4.0, "ce": 2.0},
        "logit-ce": {"logit": 6.5, "ce": 2.75},
        "repr-logit": {"logit": 6.5, "ce": 2.75},
    }
    return [
        replace(
            row,
            experiment=varied(
                row.experiment,
                tuning={
                    stage: {"stop": {"epochs": epochs, "patience": endless}}
                    for stage, epochs in tuning[row.name].items()
                },
            ),
        )
        for row in rows(base, tuple(tuning), 0)
    ]


def own(found: list[Variant]) -> list[Variant]:
    """Beside ``found``, what the paper doesn't try: the logits' path past the projection, and
    states of the teacher's fourth layer, Table 8's best on dev.

    Three seeds for the six strategies, one for the others, at rates as they are and doubled: most
    of the six are best at doubled ones.
    """
    found = [replace(row, seeds=() if row.name in MAIN else (0,)) for row in found]
    known = {row.name: row.experiment for row in found}
    changed = {
        "head on the BiLSTM": {"student": {"head_on": "bilstm"}},
        "linear projection": {"student": {"projection": "linear"}},
        "layer 4": {"teacher": {"layer": 4}},
    }
    return [
        *found,
        *(Variant(f"{name}, rates × 2", scaled(known[name], 2.0), seeds=(0,)) for name in REST),
        *(
            Variant(f"{name}, {how}", varied(known[name], **changes), seeds=(0,))
            for name in ("repr-logit", "D4.1")
            for how, changes in changed.items()
        ),
    ]


def further() -> list[Variant]:
    """D4.2 with a quarter of the further text, or with none and epochs of as many pieces."""
    (row,) = at_best(rows(ENGLISH, ("D4.2",), 0))
    found = [
        replace(
            row,
            name=name,
            experiment=varied(row.experiment, data={"unlabelled_root": str(CHOSEN / name)}),
        )
        for name in ("any", *WORTHS)
    ]
    longer = {"repr": {"stop": {"epochs": 1.625}}, "logit": {"stop": {"epochs": 6.5}}}
    none = varied(row.experiment, data={"unlabelled_root": ""}, tuning=longer)
    return [*found, replace(row, name="none", experiment=none)]


small = Study(
    "Table 3, English, 70,000 transfer sentences, at the rates that were best without them",
    tuple(at_best(rows(ENGLISH, MAIN, 1))),
    seeds=(0, 1, 2),
    orders=ORDERS,
    note=paper.context("en"),
)
others = Study(
    "Table 3, English, 70,000 transfer sentences: the other strategies",
    tuple(rows(ENGLISH, REST, 1)),
    note=paper.context("en"),
)
tried = Study(
    "Table 3, English, the text of the 20,000 labelled sentences alone: rates and D2's weights",
    (*trials(CONVERGED, (*MAIN, "D2", SVD)), *weighted(CONVERGED)),
    note=f"Rates and weights are chosen by the figures on dev. {paper.context('en')}",
)
text = Study(
    "Table 3, English, the text of the 20,000 labelled sentences alone, to convergence",
    tuple(
        replace(row, seeds=(0,)) if row.name == "D2" else row
        for row in at_best(rows(CONVERGED, (*MAIN, "D2", SVD), 0), tuple(BEST))
    ),
    seeds=(0, 1, 2),
    orders=(*ORDERS, ("D1", SVD)),
    note=paper.context("en"),
)
same = Study(
    "Table 3, English, the text of the 20,000 labelled sentences alone, at equal pieces",
    tuple(own(at_best(equal(CONVERGED)))),
    seeds=(0, 1, 2),
    orders=(
        *ORDERS,
        ("repr-logit", "D4.2"),
        ("repr-logit, rates × 2", "D4.2"),
        ("D4.2", "logit-ce"),
        ("repr-logit, head on the BiLSTM", "D4.2"),
        ("D4.1, head on the BiLSTM", "D4.1"),
        ("D4.1, linear projection", "D4.1"),
        ("repr-logit, layer 4", "D4.2"),
        ("D4.1, layer 4", "D4.1"),
    ),
    note=paper.context("en"),
)
chosen = Study(
    "Table 3, English, D4.2: a quarter of the further text, chosen by a first student",
    tuple(further()),
    seeds=(0, 1, 2),
    orders=(("unsure", "any"), ("entities", "any"), ("any", "none")),
    note=paper.context("en"),
)
languages = Study(
    "Table 3, ten languages",
    (
        *at_best(rows(TEN, (*LABELS, *MAIN[1:], "D2", "logit-ce"), 0), LABELS),
        *rows(LONGER, ("D4.1", "D4.2"), 0, TWICE),
    ),
    orders=(
        *(("D0-S", "D0"), *ORDERS),
        *((f"D4.1{TWICE}", "D1"), (f"D4.2{TWICE}", f"D4.1{TWICE}"), (f"D4.2{TWICE}", "D3.2")),
    ),
    note=paper.context(*wikiann.LANGUAGES),
    by_language=True,
)
LEAST = varied(paper.experiment, data={"transfer_limit": 700_000})
full = Study(
    "Table 3, 41 languages",
    (
        *rows(LEAST, tuple(FIGURES), 0, ", 0.7M"),
        *weighted(LEAST, ", 0.7M"),
        *(
            row
            for column, size in ((1, 1_400_000), (2, 7_200_000))
            for row in rows(
                varied(paper.experiment, data={"transfer_limit": size}),
                tuple(FIGURES)[2:],
                column,
                f", {size / 1e6:.1f}M",
            )
        ),
    ),
    orders=(
        ("D0-S, 0.7M", "D0, 0.7M"),
        ("D1, 0.7M", "D0-S, 0.7M"),
        *((f"{more}, 0.7M", f"{less}, 0.7M") for more, less in ORDERS[1:]),
    ),
    note=(
        "Of D2 the paper tells the best of weights in multiples of 10, which it doesn't name: "
        f"choose by dev. {paper.context()}"
    ),
)
