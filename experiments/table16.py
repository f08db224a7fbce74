"""Table 16: sixteen sizes of the student, their F1 and their speed.

    python experiments/table16.py                              # speed, random weights, this machine
    xdistil table experiments/table16.py --test                # F1, English, four sizes
    xdistil table experiments/table16.py --size full --test    # the paper's; hub, accelerator

Speed needs no training: random weights, 88,500 pieces, 11 tags, against mBERT-base (119,547
pieces), fp32, batches of 32 × 32 and of 1 × 32. The teacher runs in the faster of JAX and, where
torch is installed, PyTorch; 1,000 queries are 31.25 batches of 32, so the ratio is that of a batch.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import full as paper
import jax
import numpy as np
from table3 import TEXT

from xdistil_jax import Experiment
from xdistil_jax.models.bilstm import BiLSTMSpec, parameter_count
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import abstract_params, build
from xdistil_jax.report.bench import latency
from xdistil_jax.study import Study, Variant, varied

PAPER = {
    (300, 600): ("88.6", 14, 8), (200, 600): ("88.5", 15, 9), (300, 400): ("88.2", 23, 11),
    (200, 400): ("88.2", 25, 12), (100, 600): ("87.9", 16, 9), (100, 400): ("87.7", 24, 13),
    (50, 600): ("87.7", 16, 10), (300, 200): ("87.5", 40, 15), (200, 200): ("87.5", 46, 16),
    (50, 400): ("87.2", 27, 13), (100, 200): ("86.9", 49, 15), (50, 200): ("86.5", 51, 16),
    (300, 100): ("86.2", 62, 16), (200, 100): ("85.9", 68, 17), (100, 100): ("85.6", 74, 15),
    (50, 100): ("84.6", 77, 16),
}  # fmt: skip
"""(E, H) -> F1, speed-up at batch 32 (a P100) and at batch 1 (a Xeon E5-2690 v4)."""
VOCAB, TEACHER_VOCAB, CLASSES = 88_500, 119_547, 11
SHAPES = ((32, 32), (1, 32))
NOTE = (
    "F1 kept and compression refer to the run's own teacher. The paper's column is context, in 41 "
    "languages."
)


def rows(base: Experiment, sizes: tuple[tuple[int, int], ...]) -> tuple[Variant, ...]:
    """A row for each (E, H)."""
    return tuple(
        Variant(f"{e}, {h}", varied(base, student={"embed": e, "hidden": h}), PAPER[e, h][0])
        for e, h in sizes
    )


ENGLISH = varied(TEXT, strategy="D4.1", run={"latency": True})
small = Study(
    "Table 16, English, D4.1, the text of the 20,000 labelled sentences",
    rows(ENGLISH, ((50, 100), (50, 200), (100, 200), (300, 400))),
    note=NOTE,
)
full = Study("Table 16, 41 languages", rows(paper.experiment, tuple(PAPER)), note=NOTE)


def jax_ms(spec: Any, vocab: int) -> list[float]:
    """Median milliseconds of each shape, random weights, compilation apart."""
    random = np.random.default_rng(0)
    drawn = jax.tree.map(
        lambda leaf: random.normal(0, 0.02, leaf.shape).astype(leaf.dtype), abstract_params(spec)
    )
    params = jax.device_put(drawn)
    forward = jax.jit(lambda params, *batch: build(spec).apply(params, *batch).logits)
    found = []
    for batch, length in SHAPES:
        tokens = random.integers(0, vocab, (batch, length), np.int32)
        placed = jax.device_put((tokens, np.full(batch, length, np.int32)))
        call = partial(forward, params, *placed)
        found.append(latency(call, repeats=30, budget_s=20.0).median_ms)
    return found


def torch_ms() -> list[float]:
    """The same of mBERT-base in PyTorch; raises ImportError where there is none."""
    import torch
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=TEACHER_VOCAB, num_labels=CLASSES)
    model = BertForTokenClassification(config).eval()

    def timed(call: Callable[[], object]) -> float:
        for _ in range(3):
            call()
        times, end = [], time.perf_counter() + 20
        while len(times) < 30 and (not times or time.perf_counter() < end):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return 1e3 * float(np.median(times))

    with torch.inference_mode():
        return [timed(partial(model, torch.randint(0, TEACHER_VOCAB, shape))) for shape in SHAPES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()
    teacher = EncoderSpec(TEACHER_VOCAB, 768, 12, 12, 3072, classes=CLASSES)
    runtimes = {"JAX": jax_ms(teacher, TEACHER_VOCAB)}
    try:
        runtimes["PyTorch"] = torch_ms()
    except ImportError:
        print("torch is not installed: the teacher runs in JAX alone\n")
    for name, (many, one) in runtimes.items():
        print(f"mBERT-base, {name}: {many:.1f} ms for 32 × 32, {one:.2f} ms for 1 × 32")
    best = [min(times) for times in zip(*runtimes.values(), strict=True)]
    print("\n| E | H | parameters | 32 × 32, ms | times | paper | 1 × 32, ms | times | paper |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for (embed, hidden), (_, many, one) in PAPER.items():
        spec = BiLSTMSpec(VOCAB, embed, hidden, classes=CLASSES)
        ours = jax_ms(spec, VOCAB)
        cells = [f"{embed}", f"{hidden}", f"{parameter_count(spec) / 1e6:.1f}M"]
        for mine, theirs, published in zip(ours, best, (many, one), strict=True):
            cells += [f"{mine:.2f}", f"{theirs / mine:.0f}×", f"{published}×"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
