"""Table 5: the teacher, its best student, and what others have.

xdistil table experiments/table5.py --test                 # ten languages
xdistil table experiments/table5.py --size full --test     # the paper's; hub, accelerator
"""

import full as paper
import wikiann

from xdistil_jax.study import Study, Variant, varied

NOTE = (
    "F1 kept and compression refer to the run's own teacher. Context, not comparison. The paper, "
    "41 languages: mBERT for each language 90.8, mBERT 91.9, MMNER 89.2 (Rahimi et al., HSup). "
    "Its means over our ten: student 85.9, mBERT 90.0, monolingual 87.4. Rahimi et al. with 100 "
    "labels a language: LSup 62.1, and by transfer RaRe t10 77.4."
)
small = Study(
    "Table 5, ten languages",
    (Variant("distilled", wikiann.experiment, "88.6"),),
    note=NOTE,
    by_language=True,
)
full = Study(
    "Table 5, 41 languages",
    (Variant("distilled", varied(paper.experiment, strategy="D4.2"), "88.6"),),
    note=NOTE,
    by_language=True,
)
