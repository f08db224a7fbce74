"""Filling a teacher cache, against what a user would write in PyTorch: real pieces a second.

    python experiments/cache_speed.py [--sentences 2000] [--repeats 3] [--dtype float32|bfloat16]

An encoder of mBERT-base's shape with random weights over English WikiAnn, states of layer 7 and 11
logits written to disk. Peer: ../shared/bench/peer_torch.py, plain and with sentences sorted by
length (and, on a GPU, compiled). All in turn, each in a process of its own; medians; compile time
apart. On a GPU also which share of an 8192³ bf16 product's rate the pass reaches, real pieces only.
Needs torch. Figures: experiments/README.md.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

SHARED = Path(__file__).parents[2] / "shared"
VOCABULARY = SHARED / "data" / "vocab" / "bert-base-multilingual-cased-vocab.txt"
CORPUS = SHARED / "data" / "wikiann" / "en"
LAYER, CLASSES, MAX_LENGTH = 7, 11, 128


@dataclass(frozen=True)
class Arguments:
    """``only="ours"`` fills our cache once and prints its figures as JSON."""

    sentences: int = 2000
    repeats: int = 3
    dtype: Literal["float32", "bfloat16"] = "float32"
    only: Literal["all", "ours"] = "all"


def fill(given: Arguments) -> dict[str, float]:
    """Our cache: once to compile, once timed."""
    import jax
    import numpy as np

    from xdistil_jax import DataSpec, load_corpus
    from xdistil_jax.data.encode import encode
    from xdistil_jax.data.tokenizer import load_tokenizer
    from xdistil_jax.models.encoder import EncoderSpec
    from xdistil_jax.models.functional import build
    from xdistil_jax.sharding import make_mesh
    from xdistil_jax.teacher.build import build_cache
    from xdistil_jax.teacher.manifest import CacheSettings

    tokenizer = load_tokenizer(str(VOCABULARY))
    train = load_corpus(DataSpec(root=str(CORPUS.parent), languages=("en",))).train
    layer = f"layer_{LAYER}"
    spec = EncoderSpec(
        tokenizer.vocab_size, 768, 12, 12, 3072, positions=512, classes=CLASSES, outputs=(layer,),
        stacked=jax.default_backend() != "cpu",
    )  # fmt: skip
    params = build(spec).init(jax.random.key(0))
    settings = CacheSettings(
        "random", tokenizer.fingerprint, (layer,), MAX_LENGTH, dtype=given.dtype
    )
    with tempfile.TemporaryDirectory() as folder:
        sentences = train[: given.sentences]
        store = encode(
            sentences, tokenizer, None, max_length=MAX_LENGTH, folder=Path(folder) / "encoded"
        )
        seconds = []
        for name in ("compiled", "timed"):
            start = time.perf_counter()
            build_cache(
                Path(folder) / name, store, np.arange(store.rows), build(spec), params, settings,
                mesh=make_mesh(),
            )  # fmt: skip
            seconds.append(time.perf_counter() - start)
        written = sum(path.stat().st_size for path in Path(folder, "timed").rglob("*.npy"))
    pieces = int(store.lengths.sum())
    rate = pieces / seconds[1]
    found = {"tokens": pieces, "tokens_per_s": rate, "seconds": seconds[1], "bytes": written}
    if jax.default_backend() != "cpu":
        found["share_of_product"] = rate * _flops_a_piece(spec) / _product_rate()
    return {**found, "first_seconds": seconds[0]}


def _flops_a_piece(spec: object) -> float:
    """Twice the weights of the blocks; attention's products over short rows are left out."""
    width, inner = spec.width, spec.feed_forward
    return 2.0 * spec.layers * (4 * width**2 + 2 * width * inner)


def _product_rate(size: int = 8192) -> float:
    """FLOP/s of a bf16 product of this device."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(a))
    start = time.perf_counter()
    for _ in range(20):
        out = product(a)
    jax.block_until_ready(out)
    return 20 * 2.0 * size**3 / (time.perf_counter() - start)


def peers(given: Arguments, folder: Path) -> dict[str, list[str]]:
    """name -> command of each peer; they read a tokenizer.json of the same vocabulary."""
    from xdistil_jax.data.tokenizer import load_tokenizer

    load_tokenizer(str(VOCABULARY)).save(folder)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    dtype = {"float32": "fp32", "bfloat16": "bf16"}[given.dtype]
    plain = [
        sys.executable, str(SHARED / "bench" / "peer_torch.py"), "cache", "--corpus",
        str(CORPUS / "train.txt"), "--sentences", str(given.sentences), "--tokenizer", str(folder),
        "--dtype", dtype,
    ]  # fmt: skip
    return {"plain": plain, "sorted": [*plain, "--sorted"]}


def main(given: Arguments) -> None:
    """Time all in turn and print the table."""
    if given.only == "ours":
        print(json.dumps(fill(given)))
        return
    ours = [
        sys.executable, __file__, "--only", "ours", "--sentences", str(given.sentences),
        "--dtype", given.dtype,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        commands = {"xdistil_jax": ours, **peers(given, Path(folder))}
        rates: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(given.repeats):
            for name, command in commands.items():
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{name}: {done.stderr[-2000:]}")
                found = json.loads(done.stdout.strip().splitlines()[-1])
                rates[name].append(found["tokens_per_s"])
                print(name, json.dumps(found), flush=True)
    middle = {name: median(each) for name, each in rates.items()}
    for name, rate in middle.items():
        print(f"{name:12} {rate:8.0f} pieces/s   {middle['xdistil_jax'] / rate:.2f}")


if __name__ == "__main__":
    import tyro

    from xdistil_jax.terminal import told

    with told("cache_speed.py"):
        main(tyro.cli(Arguments))
