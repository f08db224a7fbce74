"""Embeddings for another vocabulary: of pieces that both have, or spelled in the old ones."""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Array, Float

from xdistil_jax.data.tokenizer import WITHIN_WORD, Tokenizer


def transplant(
    table: Float[np.ndarray, "V D"], old: Tokenizer, new: Tokenizer, key: Array
) -> Float[np.ndarray, "V2 D"]:
    """Embeddings for another vocabulary: a piece that both have keeps its row.

    Any other is spelled in the old pieces e₁ … eₖ ("München": "mun", "##chen") and becomes
    μ + Σ (eᵢ − μ) / √k, or is drawn where the old vocabulary can't spell it: either way rows have
    the mean μ and the deviation of the old table, so the first layer norm sees what it was trained
    on.
    """
    mean, known = table.mean(0), old.backend.get_vocab()
    drawn = np.array(jax.random.normal(key, (new.vocab_size, table.shape[1])))
    fresh = drawn * table.std(0) + mean
    for number, spelling in _spellings(known, old, new):
        if old.unk_id in spelling:
            continue
        parts = table[spelling]
        one = len(parts) == 1
        fresh[number] = parts[0] if one else mean + (parts - mean).sum(0) / np.sqrt(len(parts))
    specials = (
        (new.pad_id, old.pad_id), (new.unk_id, old.unk_id),
        (new.cls_id, old.cls_id), (new.sep_id, old.sep_id),
    )  # fmt: skip
    for ours, theirs in specials:
        fresh[ours] = table[theirs]
    return fresh.astype(np.float32)


def _spellings(
    known: dict[str, int], old: Tokenizer, new: Tokenizer
) -> Iterator[tuple[int, list[int]]]:
    """(number of a new piece, the old pieces that spell it); inside a word as within a word."""
    pieces = list(new.backend.get_vocab().items())
    inside = [piece.startswith(WITHIN_WORD) for piece, _ in pieces]
    bare = [new.backend.decode([number]).removeprefix(WITHIN_WORD) for _, number in pieces]
    spelled = old.backend.encode_batch(bare, add_special_tokens=False)
    for (piece, number), is_inside, encoding in zip(pieces, inside, spelled, strict=True):
        ids = list(encoding.ids)
        if piece in known:
            ids = [known[piece]]
        elif is_inside and ids:
            ids[0] = known.get(WITHIN_WORD + encoding.tokens[0], ids[0])
        if ids:
            yield number, ids
