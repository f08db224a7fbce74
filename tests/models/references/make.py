"""Make the stored references again: ``python -m tests.models.references.make`` (needs torch).

A tiny random encoder of each family from torch's transformers, its files, and what it gives for a
padded batch.
"""

from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent
FOLDER = ROOT / "bert"
LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
_SMALL = {"vocab_size": 37, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
_PAD = {"pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 18}
_ROBERTA = {**_SMALL, **_PAD}
_DEBERTA = {**_SMALL, "relative_attention": True, "norm_rel_ebd": "layer_norm"}
_DISTIL = {"vocab_size": 37, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24}
_SPECIAL = {f"{kind}_token_id": 0 for kind in ("pad", "bos", "eos", "cls", "sep")}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", _ROBERTA),
    "xlm-roberta": ("XLMRoberta", _ROBERTA),
    "xlm-roberta-xl": ("XLMRobertaXL", _ROBERTA),
    "electra": ("Electra", {**_SMALL, "embedding_size": 8}),
    "distilbert": ("DistilBert", _DISTIL),
    "deberta-v3": (
        "DebertaV2",
        {
            **_DEBERTA, "type_vocab_size": 0, "position_biased_input": False, "position_buckets": 6,
            "pos_att_type": "p2c|c2p", "share_att_key": True,
        },
    ),
    "deberta-v2": (
        "DebertaV2",
        {
            **_DEBERTA, "type_vocab_size": 2, "position_buckets": -1, "max_relative_positions": 9,
            "pos_att_type": ["c2p", "p2c"], "share_att_key": False, "embedding_size": 8,
            "conv_kernel_size": 3, "conv_act": "gelu",
        },
    ),
    "modernbert": (
        "ModernBert",
        {**_SMALL, **_SPECIAL, "num_hidden_layers": 4, "local_attention": 6, "norm_eps": 1e-5},
    ),
}  # fmt: skip
"""Name of the folder -> (transformers' class, what differs from SIZES)."""


def random_model(seed, case="bert", task="ForTokenClassification", **changes):
    """A torch model in which no parameter has a value that could hide a mistake (0 or 1)."""
    import torch
    import transformers

    torch.manual_seed(seed)
    kind, own = CASES[case]
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **own, **changes})
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    model = getattr(transformers, kind + task)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def random_batch(seed, lengths, vocab_size=61):
    """Tokens [B T], lengths [B], token types [B T]; the padding holds other tokens, too."""
    rng = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    tokens = rng.integers(2, vocab_size, shape, dtype=np.int32)
    return tokens, np.array(lengths, np.int32), rng.integers(0, 2, shape, dtype=np.int32)


def run_torch(model, tokens, lengths, token_types):
    """Hidden states and logits (zeros for a model without a head), as NumPy arrays by name."""
    import torch

    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    # RoBERTa numbers its places by the pieces that are no padding.
    tokens = np.where(mask, tokens, model.config.pad_token_id or 0)
    types = {"token_type_ids": torch.tensor(token_types, dtype=torch.long)}
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
            output_hidden_states=True,
            **(types if getattr(model.config, "type_vocab_size", 0) == 2 else {}),
        )
    states = {f"layer_{n}": s.numpy() for n, s in enumerate(output.hidden_states)}
    states["embedding"] = states.pop("layer_0")
    logits = output.get("logits")
    return states if logits is None else {**states, "logits": logits.numpy()}


if __name__ == "__main__":
    for case in CASES:
        model = random_model(0, case)
        model.save_pretrained(ROOT / case)
        batch = random_batch(0, (16, 1, 7, 12), model.config.vocab_size)
        names = ("tokens", "lengths", "token_types")
        given = dict(zip(names, batch, strict=True))
        np.savez(ROOT / case / "outputs.npz", **given, **run_torch(model, *batch))
