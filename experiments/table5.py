"""Table 5: the teacher, its best student, and what others have.

xdistil table experiments/table5.py --test                 # ten languages
xdistil table experiments/table5.py --size full --test     # the paper's; hub, accelerator
"""

import full as paper
import wikiann

from xdistil_jax.study import Study, Variant, varied

BEST = "D3.2"
"""Of all strategies the best on dev in ten languages (Table 3)."""
NOTE = (
    "In the paper's table the student has 88.64 (88.52 with 7.2M transfer sentences; 86.46 at E=50 "
    "and H=200), mBERT 91.86, mBERT for each language 90.76, Rahimi et al.'s tagger for each "
    "language (which it calls MMNER) 89.20; with 100 labels a language Rahimi et al. have 62.1 "
    "(LSup) and, by transfer, 77.4 (RaRe t10): context, in 41 languages."
)
small = Study(
    "Table 5, ten languages",
    (Variant("distilled", varied(wikiann.experiment, strategy=BEST), "88.6"),),
    note=f"{NOTE} {paper.context(*wikiann.LANGUAGES)}",
    by_language=True,
)
full = Study(
    "Table 5, 41 languages",
    (Variant("distilled", varied(paper.experiment, strategy="D4.2"), "88.6"),),
    note=NOTE,
    by_language=True,
)
