"""Table 9: text classification.

    python experiments/language_id.py                          # cuts the snippets
    xdistil table experiments/table9.py --test                 # which of 41 languages
    xdistil table experiments/table9.py --size full --test     # the paper's; hub, accelerator

At full size each data set has BERT-base and BERT-large as teachers, from folders of yours:
classification/{ag,imdb,elec,dbpedia} with train.tsv, dev.tsv and test.tsv, text<TAB>class, and for
imdb and elec unlabelled.txt, the 50,000 and 200,000 reviews without a class, one a line.
"""

import full as paper
import language_id
from table3 import label_only

from xdistil_jax import Experiment
from xdistil_jax.study import Study, Variant, varied

NOTE = (
    "Accuracy; the paper's column is its student that reads the last state, without and with "
    "distillation. There BERT-base has AG 92.1, IMDB 91.7, Elec 93.5, DBpedia 99.3, BERT-large "
    "94.6, 93.2, 94.3 and 99.2: context."
)
SETS = {
    "AG": ("89.7", "92.3", "94.3", False),
    "IMDB": ("89.4", "91.2", "91.7", True),
    "Elec": ("90.6", "93.6", "93.6", True),
    "DBpedia": ("98.6", "99.1", "99.1", False),
}
"""Name -> accuracy from labels alone, distilled from BERT-base, from BERT-large, and is there
unlabelled text?"""
BASE, LARGE = "bert-base-uncased", "bert-large-uncased"


def classifier(name: str, checkpoint: str = BASE) -> Experiment:
    """English BERT, and a student of 300 × 600 that reads the last state."""
    folder = f"classification/{name.lower()}"
    return varied(
        paper.experiment,
        name=name.lower(),
        strategy="D4.1",
        data={
            "task": "classification",
            "root": folder,
            "languages": (),
            "unlabelled_root": "",
            "unlabelled": (f"{folder}/unlabelled.txt",) if SETS[name][-1] else (),
            "transfer_limit": None,
        },
        teacher={"checkpoint": checkpoint, "layer": 0, "max_length": 256},
    )


LABELS = varied(
    label_only(language_id.experiment),
    tuning={"ce": {"schedule": {"peak": 3e-3}, "stop": {"epochs": 15.0}}},
)
small = Study(
    "Table 9, language identification",
    (
        Variant("labels only", LABELS),
        Variant("distilled, maximum", language_id.experiment),
        Variant(
            "distilled, last state", varied(language_id.experiment, student={"pooling": "last"})
        ),
    ),
    orders=(("distilled, maximum", "labels only"),),
    note=(
        "Accuracy, its mean over the languages; macro-F1 and MCC of all snippets. The paper has no "
        "such task; there distillation from BERT-base is worth 0.5 to 3 points: context."
    ),
)
full = Study(
    "Table 9",
    tuple(
        row
        for name, (alone, base, large, _) in SETS.items()
        for row in (
            Variant(f"{name}, labels only", label_only(classifier(name)), alone),
            Variant(name, classifier(name), base),
            Variant(f"{name}, BERT-large", classifier(name, LARGE), large),
        )
    ),
    orders=tuple(
        order
        for name in SETS
        for order in ((name, f"{name}, labels only"), (f"{name}, BERT-large", name))
        # By the paper's second decimal BERT-large is the worse teacher of DBpedia.
        if order != ("DBpedia, BERT-large", "DBpedia")
    ),
    note=NOTE,
)
