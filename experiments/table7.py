"""Table 7: what the student's embedding starts from.

    xdistil table experiments/table7.py --test                 # English
    xdistil table experiments/table7.py --size full --test     # the paper's; hub, accelerator
    python experiments/table7.py runs/english/teacher-…/model runs/english/D4.1-…/student

`GloVe` and `FastText` want files: `vectors/glove.txt` and `vectors/fasttext.vec`. As a script: how
far fine-tuning has moved the teacher's embeddings of the pieces that a student has.
"""

import argparse
import sys
from pathlib import Path

import full as paper
import numpy as np
from english import minilm
from jaxtyping import Float
from table3 import TEXT

from xdistil_jax import Experiment
from xdistil_jax.data.tokenizer import load_tokenizer
from xdistil_jax.models.tensors import read_folder
from xdistil_jax.study import Study, Variant, varied
from xdistil_jax.terminal import told


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


def moved(
    old: Float[np.ndarray, "V D"], new: Float[np.ndarray, "V D"], rank: int
) -> tuple[float, float]:
    """‖new − old‖ / ‖old‖, and how far the directions of two SVDs of this rank overlap (1: all)."""
    ours, theirs = (np.linalg.svd(each, full_matrices=False)[2][:rank] for each in (old, new))
    far = np.linalg.norm(new - old) / np.linalg.norm(old)
    return float(far), float(np.linalg.norm(ours @ theirs.T) ** 2 / rank)


def rows_of(folder: Path, pieces: list[str]) -> Float[np.ndarray, "V D"]:
    """The word embeddings of these pieces in a BERT checkpoint."""
    tables = [each for name, each in read_folder(folder).items() if "word_embeddings" in name]
    if not tables:
        sys.exit(
            f"{folder} has no word embeddings: expected a teacher's model folder, then a run's"
        )
    known = load_tokenizer(folder).backend.get_vocab()
    return np.asarray(tables[0], np.float32)[[known[piece] for piece in pieces]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("teacher", type=Path, help="the model folder of a fine-tuned teacher")
    parser.add_argument("student", type=Path, help="the student folder of a run")
    parser.add_argument("--pretrained", type=Path, default=Path(minilm()))
    given = parser.parse_args()
    places = (given.pretrained, given.teacher, given.student)
    vocabularies = [set(load_tokenizer(place).backend.get_vocab()) for place in places]
    pieces = sorted(set.intersection(*vocabularies))
    rank = ENGLISH.student.embed
    far, overlap = moved(*(rows_of(place, pieces) for place in places[:2]), rank)
    print(
        f"{len(pieces):,} pieces: moved by {far:.1%} of their norm; "
        f"the first {rank} directions overlap by {overlap:.1%}"
    )


if __name__ == "__main__":
    with told("table7.py"):
        main()
