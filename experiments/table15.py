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
    (50, 100): "80.3", (200, 100): "79.2", (300, 100): "79.6", (50, 200): "81.2",
    (300, 200): "80.0", (50, 400): "82.0", (200, 400): "80.6", (100, 400): "81.5",
    (300, 400): "80.2", (50, 600): "81.8", (100, 600): "81.9", (200, 600): "80.7",
    (300, 600): "81.4",
}  # fmt: skip
"""(E, H) -> F1; one after the other as fast as those of ``TRANSFORMER``."""
TRANSFORMER = {
    (48, 2): "76.7", (144, 1): "78.5", (72, 2): "78.0", (96, 2): "79.2", (132, 2): "80.0",
    (204, 2): "81.0", (228, 2): "80.9", (240, 2): "80.8", (252, 2): "80.8", (228, 3): "83.8",
    (240, 3): "84.1", (252, 3): "84.1", (276, 3): "84.1",
}  # fmt: skip
"""(width, layers) -> F1."""


def rows(base: Experiment, *sizes: tuple[int, int]) -> list[Variant]:
    """BiLSTMs of (E, H)."""
    return [
        Variant(f"BiLSTM {e}, {h}", varied(base, student={"embed": e, "hidden": h}), BILSTM[e, h])
        for e, h in sizes
    ]


def transformers(base: Experiment, *sizes: tuple[int, int]) -> list[Variant]:
    """Transformers of (width, layers), with twelve heads."""
    return [
        Variant(
            f"transformer {width}, {layers}",
            varied(
                base,
                student={"kind": "transformer", "width": width, "layers": layers, "heads": 12},
            ),
            TRANSFORMER[width, layers],
        )
        for width, layers in sizes
    ]


def pairs(
    bilstms: tuple[tuple[int, int], ...], others: tuple[tuple[int, int], ...]
) -> tuple[tuple[str, str], ...]:
    """Which is better of two that are as fast in the paper: the BiLSTM, but with three layers."""
    found = []
    for (e, h), (width, layers) in zip(bilstms, others, strict=True):
        both = (f"BiLSTM {e}, {h}", f"transformer {width}, {layers}")
        found.append(both if layers < 3 else both[::-1])
    return tuple(found)


FAST = ((50, 100), (50, 200), (100, 400))
AS_FAST = ((48, 2), (96, 2), (240, 2))
ENGLISH = varied(label_only(TEXT), run={"latency": True})
FULL = label_only(paper.experiment)
small = Study(
    "Table 15, English, the text of the 20,000 labelled sentences",
    (*rows(ENGLISH, *FAST), *transformers(ENGLISH, *AS_FAST)),
    orders=pairs(FAST, AS_FAST),
    note=f"Labels alone. {paper.context('en')}",
)
full = Study(
    "Table 15, 41 languages",
    (*rows(FULL, *BILSTM), *transformers(FULL, *TRANSFORMER)),
    orders=pairs(tuple(BILSTM), tuple(TRANSFORMER)),
    note=f"Labels alone. {paper.context()}",
)
