"""Table 5: the teacher, its best student, and what others have.

xdistil table experiments/table5.py --test                 # ten languages
xdistil table experiments/table5.py --size full --test     # the paper's; hub, accelerator
"""

import full as paper
import wikiann

from xdistil_jax.study import Study, Variant, varied

BEST = "D3.2"
"""Of all strategies the best on dev in ten languages (Table 3)."""
FEW = "Rahimi et al. with 100 labels a language: LSup 62.1, and by transfer RaRe t10 77.4."
small = Study(
    "Table 5, ten languages",
    (Variant("distilled", varied(wikiann.experiment, strategy=BEST), "88.6"),),
    note=f"{paper.context()} {paper.context(*wikiann.LANGUAGES)} {FEW}",
    by_language=True,
)
full = Study(
    "Table 5, 41 languages",
    (Variant("distilled", varied(paper.experiment, strategy="D4.2"), "88.6"),),
    note=f"{paper.context()} {FEW}",
    by_language=True,
)
