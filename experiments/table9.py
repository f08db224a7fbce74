"""Table 9: text classification.

    python experiments/language_id.py                          # cuts the snippets
    xdistil table experiments/table9.py --test                 # which of 41 languages
    xdistil table experiments/table9.py --size full --test     # the paper's; hub, accelerator

At full size each data set is a run of its own, with BERT as its teacher, from folders of yours:
classification/{ag,imdb,elec,dbpedia} with train.tsv, dev.tsv and test.tsv, text<TAB>class.
"""

import full as paper
import language_id
from table3 import label_only

from xdistil_jax import Experiment
from xdistil_jax.study import Study, Variant, varied

NOTE = "Accuracy. The paper's column is context: its student distilled from BERT-base, last state."
SETS = {"AG": "92.3", "IMDB": "91.2", "Elec": "93.6", "DBpedia": "99.1"}


def classifier(name: str) -> Experiment:
    """English BERT, and a student of 300 × 600 that reads the last state."""
    return varied(
        paper.experiment,
        name=name.lower(),
        strategy="D4.1",
        data={
            "task": "classification",
            "root": f"classification/{name.lower()}",
            "languages": (),
            "unlabelled_root": "",
            "transfer_limit": None,
        },
        teacher={"checkpoint": "bert-base-uncased", "layer": 0, "max_length": 256},
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
    note="Accuracy over the languages.",
)
full = Study(
    "Table 9",
    tuple(Variant(name, classifier(name), figure) for name, figure in SETS.items()),
    note=NOTE,
)
