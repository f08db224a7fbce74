"""Table 17: every language.

xdistil table experiments/table17.py --test                       # ten languages
xdistil table experiments/table17.py --size single --test         # with a teacher for each
xdistil table experiments/table17.py --size full --test           # the paper's; hub, accelerator
xdistil table experiments/table17.py --size full_single --test    # its mBERT-single
"""

import full as paper
import table5
import wikiann
from table3 import BEST, label_only, scaled

from xdistil_jax import Experiment, markdown
from xdistil_jax.study import Study, Variant, varied


def note(*languages: str) -> str:
    """The paper's table in these languages (none: in all)."""
    codes = languages or tuple(paper.TABLE_17)
    names = ("student", "mBERT for each language", "mBERT", "HSup")
    columns = zip(*(paper.TABLE_17[code] for code in codes), strict=True)
    lines = [[name, *map(str, column)] for name, column in zip(names, columns, strict=True)]
    return f"{paper.context(*languages)}\n\n{markdown.table(['the paper', *codes], lines)}"


SINGLE = (
    "Teachers are what the paper calls mBERT-single; the student of each has learnt from its "
    "labels alone, and from nothing that the teacher says."
)


def alone(base: Experiment, languages: tuple[str, ...]) -> tuple[Variant, ...]:
    """A row for each language, whose teacher and student have seen its labels alone."""
    return tuple(
        Variant(code, varied(base, data={"languages": (code,), "unlabelled_root": ""}))
        for code in languages
    )


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
single = Study(
    "Table 17, ten languages, a teacher for each",
    alone(scaled(label_only(wikiann.experiment), BEST["D0"]), wikiann.LANGUAGES),
    note=f"{SINGLE} {note(*wikiann.LANGUAGES)}",
)
full_single = Study(
    "Table 17, 41 languages, a teacher for each",
    alone(label_only(paper.experiment), paper.LANGUAGES),
    note=f"{SINGLE} {note()}",
)
