"""Table 17: every language.

xdistil table experiments/table17.py --test                # ten languages
xdistil table experiments/table17.py --size full --test    # the paper's; hub, accelerator
"""

import full as paper
import wikiann
from table3 import BEST, label_only, scaled

from xdistil_jax.study import Study, Variant, varied

NOTE = (
    "F1 kept and compression refer to the run's own teacher. Context, not comparison: the paper's "
    "means over our ten languages are 85.9 (student), 90.0 (mBERT), 87.4 (mBERT for each language)."
)
small = Study(
    "Table 17, ten languages",
    (
        Variant("distilled", wikiann.experiment),
        Variant("labels only", scaled(label_only(wikiann.experiment), BEST["D0-S"])),
    ),
    orders=(("distilled", "labels only"),),
    note=NOTE,
    by_language=True,
)
full = Study(
    "Table 17, 41 languages",
    (
        Variant("distilled", varied(paper.experiment, strategy="D4.2"), "88.6"),
        Variant("labels only", label_only(paper.experiment), "81.4"),
    ),
    note=NOTE,
    by_language=True,
)
