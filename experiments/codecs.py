"""What the codecs of the teacher cache cost and lose, on the teacher of english.py.

    python experiments/codecs.py [--out runs] [--codecs bf16 int8 pca-64 …] [--sentences 2000]

Builds the cache of the 20,000 training sentences with each codec (the runs of the table find them
again), and prints the coordinates and bytes of a token's state and its error: over the pieces of
some sentences, the root of Σ‖decoded − fp32‖² / Σ‖fp32 − their mean‖². Figures: README.md.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import tyro
from english import experiment
from jaxtyping import Float, Int

from xdistil_jax import Session, cache_teacher, encode_text, load_corpus, prepare_teacher
from xdistil_jax.distill.feed import collate
from xdistil_jax.teacher.codec import find_codec
from xdistil_jax.teacher.source import OnlineTeacher, Teacher


@dataclass(frozen=True)
class Arguments:
    """``out`` is where runs lie; a teacher that is there is found."""

    out: str = "runs"
    codecs: tuple[str, ...] = ("bf16", "int8", "pca-256", "pca-128", "pca-64", "pca-0.99")
    sentences: int = 2000


def states(
    teacher: Teacher, text: Any, rows: Int[np.ndarray, "R"], layer: str
) -> Float[np.ndarray, "N D"]:
    """What ``teacher`` says of the real pieces of rows, 50 rows at a time."""
    width = int(text.ours.lengths[rows].max())
    lookup, found = jax.jit(teacher.lookup), []
    for part in np.array_split(rows, max(1, len(rows) // 50)):
        batch = collate(text.ours, part[None], width, np.zeros(len(part), bool))
        batch = jax.tree.map(lambda leaf: leaf[0], batch)
        output = lookup(teacher.arrays, teacher.stream(part, width), batch)
        found.append(np.asarray(output.hidden[layer])[batch.repr_mask])
    return np.concatenate(found)


def main(given: Arguments) -> None:
    """Print a line for each codec."""
    chosen = replace(
        experiment,
        data=replace(experiment.data, unlabelled_root=""),
        run=replace(experiment.run, out=given.out),
    )
    session = Session.start(chosen, say=print)
    corpus = load_corpus(chosen.data)
    teacher = prepare_teacher(session, corpus)
    text = encode_text(session, corpus, teacher)
    layer = teacher.layer
    # Equal steps through all rows; few of them were in the sample of a basis.
    rows = np.arange(0, text.ours.rows, max(1, text.ours.rows // given.sentences))
    online = OnlineTeacher(teacher.spec, teacher.params, text.kept, (layer,))
    exact = states(online, text, rows, layer).astype(np.float64)
    energy = ((exact - exact.mean(0)) ** 2).sum()
    print(f"{len(exact):,} pieces of {len(rows):,} rows")
    for name in given.codecs:
        cache = cache_teacher(session, text, replace(teacher, codec=name))
        basis = cache.bases.by_layer.get(layer)
        width = exact.shape[1] if basis is None else basis.directions.shape[1]
        size = find_codec(name).numbers.bytes_per_token(width)
        error = np.sqrt(((states(cache, text, rows, layer) - exact) ** 2).sum() / energy)
        print(f"{name}: {width} coordinates, {size} bytes, error {100 * error:.2f} %", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
