"""Table 7: what the student's embedding starts from.

    xdistil table experiments/table7.py --test                 # English
    xdistil table experiments/table7.py --size full --test     # the paper's; hub, accelerator

`GloVe` and `FastText` want files: `vectors/glove.txt` and `vectors/fasttext.vec`.
"""

import full as paper
from table3 import TEXT

from xdistil_jax import Experiment
from xdistil_jax.study import Study, Variant, varied


def rows(base: Experiment, starts: dict[str, tuple[dict, str]]) -> tuple[Variant, ...]:
    """A row for each way to start."""
    return tuple(
        Variant(name, varied(base, student=student), figure)
        for name, (student, figure) in starts.items()
    )


OURS = {
    "SVD, fine-tuned": ({"embedding": "svd"}, "88.6"),
    "full width": ({"embedding": "full"}, "88.6"),
    "SVD, pretrained": ({"embedding": "svd", "embedding_source": "pretrained"}, "88.5"),
    "PCA": ({"embedding": "pca"}, ""),
    "PCA+PPA, 14": ({"embedding": "ppa", "removed_directions": 14}, "88.4"),
    "PCA+PPA, 17": ({"embedding": "ppa", "removed_directions": 17}, "88.3"),
    "random": ({"embedding": "random"}, "87.4"),
    "SVD, frozen": ({"embedding": "svd", "freeze_embedding": True}, ""),
    "projected": ({"embedding": "projected"}, ""),
}
FILES = {
    "GloVe": ({"embedding": "vectors", "vectors": "vectors/glove.txt"}, "88.2"),
    "FastText": ({"embedding": "vectors", "vectors": "vectors/fasttext.vec"}, "87.9"),
}
ENGLISH = varied(TEXT, strategy="D4.1")
small = Study(
    "Table 7, English, D4.1, the text of the 20,000 labelled sentences",
    rows(ENGLISH, OURS),
    orders=(("SVD, fine-tuned", "random"), ("SVD, fine-tuned", "SVD, pretrained")),
    note=paper.context("en"),
)
full = Study(
    "Table 7, 41 languages",
    rows(varied(paper.experiment, strategy="D4.2"), OURS | FILES),
    orders=(("SVD, fine-tuned", "random"), ("SVD, fine-tuned", "SVD, pretrained")),
    note=paper.context(),
)
