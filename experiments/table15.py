"""Table 15: BiLSTM and transformer students of like latency, from labels alone.

    xdistil table experiments/table15.py --test                # English, three pairs
    xdistil table experiments/table15.py --size full --test    # the paper's; hub, accelerator

Which are of like latency differs from machine to machine: the columns of speed-ups are measured.
"""

import full as paper
from table3 import TEXT, label_only

from xdistil_jax import Experiment
from xdistil_jax.study import Study, Variant, varied

BILSTM = {
    (50, 100): (80.26, 0.311), (200, 100): (79.21, 0.354), (300, 100): (79.63, 0.385),
    (50, 200): (81.22, 0.472), (300, 200): (80.04, 0.593), (50, 400): (81.98, 0.892),
    (200, 400): (80.61, 0.978), (100, 400): (81.54, 1.0), (300, 400): (80.16, 1.06),
    (50, 600): (81.78, 1.5), (100, 600): (81.94, 1.53), (200, 600): (80.7, 1.628),
    (300, 600): (81.42, 1.766),
}  # fmt: skip
"""(E, H) -> F1, latency in a unit that the paper doesn't say; one after the other as fast as those
of ``TRANSFORMER``."""
TRANSFORMER = {
    (48, 2): (76.67, 0.307), (144, 1): (78.49, 0.357), (72, 2): (77.98, 0.388),
    (96, 2): (79.19, 0.47), (132, 2): (80.0, 0.6), (204, 2): (80.96, 0.88),
    (228, 2): (80.87, 0.979), (240, 2): (80.79, 1.03), (252, 2): (80.84, 1.075),
    (228, 3): (83.75, 1.448), (240, 3): (84.07, 1.498), (252, 3): (84.08, 1.591),
    (276, 3): (84.06, 1.742),
}  # fmt: skip
"""(width, layers) -> F1, latency."""


def shown(f1: float, latency: float) -> str:
    """The paper's figures of a row."""
    return f"{f1:.1f}, {latency:.2f}"


def rows(base: Experiment, *sizes: tuple[int, int]) -> list[Variant]:
    """BiLSTMs of (E, H)."""
    return [
        Variant(
            f"BiLSTM {e}, {h}",
            varied(base, student={"embed": e, "hidden": h}),
            shown(*BILSTM[e, h]),
        )
        for e, h in sizes
    ]


def transformers(base: Experiment, *sizes: tuple[int, int]) -> list[Variant]:
    """Transformers of (width, layers); the paper names no number of heads."""
    return [
        Variant(
            f"transformer {width}, {layers}",
            varied(
                base,
                student={"kind": "transformer", "width": width, "layers": layers, "heads": 12},
            ),
            shown(*TRANSFORMER[width, layers]),
        )
        for width, layers in sizes
    ]


def pairs(
    bilstms: tuple[tuple[int, int], ...], others: tuple[tuple[int, int], ...]
) -> tuple[tuple[str, str], ...]:
    """Of two that are as fast in the paper, the one that is better there before the other."""
    found = []
    for (e, h), (width, layers) in zip(bilstms, others, strict=True):
        both = (f"BiLSTM {e}, {h}", f"transformer {width}, {layers}")
        better = BILSTM[e, h] > TRANSFORMER[width, layers]
        found.append(both if better else both[::-1])
    return tuple(found)


NOTE = "Labels alone. The paper's column: F1, and latency in a unit that it doesn't say."
FAST = ((50, 100), (50, 200), (100, 400))
AS_FAST = ((48, 2), (96, 2), (240, 2))
ENGLISH = varied(label_only(TEXT), run={"latency": True})
FULL = label_only(paper.experiment)
small = Study(
    "Table 15, English, the text of the 20,000 labelled sentences",
    (*rows(ENGLISH, *FAST), *transformers(ENGLISH, *AS_FAST)),
    orders=pairs(FAST, AS_FAST),
    note=f"{NOTE} {paper.context('en')}",
)
full = Study(
    "Table 15, 41 languages",
    (*rows(FULL, *BILSTM), *transformers(FULL, *TRANSFORMER)),
    orders=pairs(tuple(BILSTM), tuple(TRANSFORMER)),
    note=f"{NOTE} {paper.context()}",
)
