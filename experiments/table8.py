"""Table 8: which layer of the teacher the student imitates.

xdistil table experiments/table8.py --test                 # English; MiniLM has six layers
xdistil table experiments/table8.py --size full --test     # the paper's; hub, accelerator
"""

import full as paper
from table3 import TEXT

from xdistil_jax.study import Study, Variant, varied

PAPER = {11: "88.5", 9: "88.3", 7: "88.6", 6: "88.6", 4: "88.2", 2: "88.5", 1: "88.5"}
ENGLISH = varied(TEXT, strategy="D4.1")
small = Study(
    "Table 8, English, D4.1, the text of the 20,000 labelled sentences",
    (
        *(Variant(f"layer {n}", varied(ENGLISH, teacher={"layer": n})) for n in (6, 4, 2)),
        Variant("layers 6, 4 and 2", varied(ENGLISH, teacher={"hidden_layers": (6, 4, 2)})),
    ),
    orders=(("layer 4", "layer 6"), ("layer 4", "layer 2")),
    note=paper.context("en"),
)
full = Study(
    "Table 8, 41 languages",
    tuple(
        Variant(f"layer {n}", varied(paper.experiment, teacher={"layer": n}), figure)
        for n, figure in PAPER.items()
    ),
    orders=(("layer 7", "layer 11"), ("layer 7", "layer 1")),
    note=paper.context(),
)
