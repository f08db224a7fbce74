"""The paper's smallest student beside mBERT-base, random weights: what ``xdistil bench`` tells.

    python experiments/latency.py [--embed 50] [--hidden 200]

Speed needs no training: a BiLSTM student with 88,500 pieces and the tags of WikiAnn, exported.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np

from xdistil_jax import trees
from xdistil_jax.benchmark import tables
from xdistil_jax.benchmark.bench import bench
from xdistil_jax.data.synthetic import synthesise
from xdistil_jax.data.tokenizer import train_tokenizer
from xdistil_jax.deploy.bundle import load_bundle, save_bundle, seal
from xdistil_jax.deploy.onnx import save_graph
from xdistil_jax.export import GRAPHS
from xdistil_jax.labels import TagSet
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.functional import abstract_params
from xdistil_jax.terminal import told

PIECES = 88_500
TAGS = TagSet(("LOC", "ORG", "PER"))


def make(folder: Path, embed: int, hidden: int) -> None:
    """A student that was never trained, as it is exported."""
    spec = BiLSTMSpec(PIECES, embed, hidden, classes=len(TAGS))
    random = np.random.default_rng(0)
    weights = {
        path: 0.1 * random.standard_normal(leaf.shape, np.float32)
        for path, leaf in trees.leaves(abstract_params(spec))
    }
    corpus = synthesise(languages=("de", "en", "ru"), seed=0)
    save_bundle(
        folder,
        kind="bilstm",
        sizes=asdict(spec),
        weights=weights,
        tokenizer=train_tokenizer(corpus.train, 2_000),
        tagset=TAGS,
        max_length=128,
        decoding="iob2",
    )
    bundle = load_bundle(folder)
    for name, graph in GRAPHS.items():
        save_graph(graph(bundle), folder / name)
    seal(folder, GRAPHS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--embed", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=200)
    parser.add_argument("--teacher", default="mbert-base")
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    folder = Path("runs", "latency", f"{given.embed}-{given.hidden}")
    if not folder.is_dir():
        make(folder, given.embed, given.hidden)
    print(tables.render(bench(folder, teacher=given.teacher, seconds=given.seconds, say=print)))


if __name__ == "__main__":
    with told("latency.py"):
        main()
