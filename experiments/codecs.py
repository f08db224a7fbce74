"""What the codecs of the teacher cache cost and lose, on the teacher of english.py.

    python experiments/codecs.py [--out runs] [--codecs bf16 int8 pca-64 …] [--sentences 2000]

Prints the numbers and bytes of a token's state and its error: over the pieces of some training
sentences, the root of Σ‖decoded − fp32‖² / Σ‖fp32 − their mean‖². Bases are fitted to as many
pieces as a cache's are, of other sentences. Figures: README.md.
"""

from dataclasses import dataclass, replace

import jax
import numpy as np
import tyro
from english import experiment
from jaxtyping import Float, Int

from xdistil_jax import Session, encode_text, load_corpus, prepare_teacher
from xdistil_jax.distill.feed import collate
from xdistil_jax.targets import Text
from xdistil_jax.teacher.basis import fit_basis
from xdistil_jax.teacher.codec import find_codec
from xdistil_jax.teacher.source import OnlineTeacher
from xdistil_jax.terminal import told

SAMPLED_PIECES = 1 << 15


@dataclass(frozen=True)
class Arguments:
    """``out`` is where runs lie; a teacher that is there is found."""

    out: str = "runs"
    codecs: tuple[str, ...] = ("bf16", "int8", "pca-256", "pca-128", "pca-64", "pca-0.99")
    sentences: int = 2000


def states(
    teacher: OnlineTeacher, text: Text, rows: Int[np.ndarray, "R"]
) -> Float[np.ndarray, "N D"]:
    """What ``teacher`` says of the real pieces of rows, 50 rows of about one length at a time."""
    lookup, found = jax.jit(teacher.lookup), []
    rows = rows[np.argsort(text.ours.lengths[rows])]
    for part in np.array_split(rows, max(1, len(rows) // 50)):
        width = -(-int(text.ours.lengths[part].max()) // 8) * 8
        batch = collate(text.ours, part[None], width, np.zeros(len(part), bool))
        batch = jax.tree.map(lambda leaf: leaf[0], batch)
        [hidden] = lookup(teacher.arrays, (), batch).hidden.values()
        found.append(np.asarray(hidden)[batch.repr_mask])
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
    online = OnlineTeacher(teacher.spec, teacher.params, text.kept, teacher.layers)
    rows = np.random.default_rng(0).permutation(text.ours.rows)
    sampled = 1 + int(np.searchsorted(text.ours.lengths[rows].cumsum(), SAMPLED_PIECES))
    sample = states(online, text, rows[:sampled])
    exact = states(online, text, rows[sampled:][: given.sentences])
    energy = ((exact - exact.mean(0)).astype(np.float64) ** 2).sum()
    print(f"fitted to {len(sample):,} pieces, measured on {len(exact):,}")
    for name in given.codecs:
        codec = find_codec(name)
        basis = None if codec.kept is None else fit_basis(sample, codec.kept)
        stored = codec.encode(exact, basis)
        decoded = codec.numbers.decode(stored.view(codec.numbers.streamed))
        width = decoded.shape[1]
        decoded = decoded if basis is None else basis.restore(decoded)
        error = np.sqrt(((decoded - exact).astype(np.float64) ** 2).sum() / energy)
        size = stored.nbytes // len(stored)
        print(f"{name}: {width} numbers, {size} bytes, error {100 * error:.2f} %", flush=True)


if __name__ == "__main__":
    with told("codecs.py"):
        main(tyro.cli(Arguments))
