"""Table 17: every language.

xdistil table experiments/table17.py --test                # ten languages
xdistil table experiments/table17.py --size full --test    # the paper's; hub, accelerator
"""

import full as paper
import table5
import wikiann
from table3 import BEST, label_only, scaled

from xdistil_jax import markdown
from xdistil_jax.study import Study, Variant, varied


def note(*languages: str) -> str:
    """The paper's table in these languages (none: in all)."""
    codes = languages or tuple(paper.TABLE_17)
    names = ("student", "mBERT for each language", "mBERT", "HSup")
    columns = zip(*(paper.TABLE_17[code] for code in codes), strict=True)
    lines = [[name, *map(str, column)] for name, column in zip(names, columns, strict=True)]
    return f"{paper.context(*languages)}\n\n{markdown.table(['the paper', *codes], lines)}"


small = Study(
    "Table 17, ten languages",
    (
        Variant("distilled", varied(wikiann.experiment, strategy=table5.BEST)),
        Variant("labels only", scaled(label_only(wikiann.experiment), BEST["D0-S"])),
    ),
    orders=(("distilled", "labels only"),),
    note=note(*wikiann.LANGUAGES),
    by_language=True,
)
full = Study(
    "Table 17, 41 languages",
    (
        Variant("distilled", varied(paper.experiment, strategy="D4.2"), "88.6"),
        Variant("labels only", label_only(paper.experiment), "81.4"),
    ),
    orders=(("distilled", "labels only"),),
    note=note(),
    by_language=True,
)
