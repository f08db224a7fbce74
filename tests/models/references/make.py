"""Make the stored references again: ``python -m tests.models.references.make`` (needs torch).

A tiny random BERT of torch's transformers, its files, and what it gives for a padded batch.
"""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "tiny_bert"
LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}


def random_bert(seed, cls="BertForTokenClassification", **changes):
    """A torch model in which no parameter has a value that could hide a mistake (0 or 1)."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.BertConfig(**{**SIZES, **changes})
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def random_batch(seed, lengths, vocab_size=61):
    """Tokens [B T], lengths [B], token types [B T]; the padding holds other tokens, too."""
    rng = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    tokens = rng.integers(0, vocab_size, shape, dtype=np.int32)
    return tokens, np.array(lengths, np.int32), rng.integers(0, 2, shape, dtype=np.int32)


def run_torch(model, tokens, lengths, token_types):
    """Hidden states and logits (zeros for a model without a head), as NumPy arrays by name."""
    import torch

    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
            token_type_ids=torch.tensor(token_types, dtype=torch.long),
            output_hidden_states=True,
        )
    states = {f"layer_{n}": s.numpy() for n, s in enumerate(output.hidden_states)}
    states["embedding"] = states.pop("layer_0")
    logits = output.get("logits")
    return states if logits is None else {**states, "logits": logits.numpy()}


if __name__ == "__main__":
    bert = random_bert(0)
    bert.save_pretrained(FOLDER)
    batch = random_batch(0, (16, 1, 7, 12))
    names = ("tokens", "lengths", "token_types")
    np.savez(
        FOLDER / "outputs.npz", **dict(zip(names, batch, strict=True)), **run_torch(bert, *batch)
    )
