"""A tokenizer cut down to the pieces of a text, which it cuts as before."""

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import tokenizers

from xdistil_jax.data.tokenizer import Tokenizer, frame


def cut_tokenizer(
    tokenizer: Tokenizer, used: Iterable[int] | np.ndarray
) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer without the pieces that are neither used, special, nor single characters.

    Returns it with ``kept``, int32 [V']: ``kept[new_id] == old_id``, special pieces first. Words
    made of used pieces are cut as before: greedy longest match and Viterbi keep their choice when
    only unused pieces go, and BPE keeps every merge on the way to a piece that stays. What was
    added outside of a Unigram model, such as DeBERTa-v3's [MASK], goes: no word is cut into it.
    """
    content = json.loads(tokenizer.backend.to_str())
    model, added = content["model"], content["added_tokens"]
    if model["type"] not in ("WordPiece", "Unigram", "BPE"):
        raise ValueError(
            f"can't cut a {model['type']} tokenizer: expected WordPiece, Unigram or BPE"
        )
    names = {number: piece for piece, number in tokenizer.backend.get_vocab().items()}
    used_ids = {int(number) for number in used}
    if unknown := used_ids - names.keys():
        raise ValueError(f"piece {min(unknown)} is not in the tokenizer's {len(names)} pieces")
    special = {token["id"] for token in added} | set(tokenizer.special_ids)
    if model["type"] == "Unigram":
        outside = {n for n in special if n >= len(model["vocab"])} - set(tokenizer.special_ids)
        special -= outside
        used_ids -= outside
        added[:] = [token for token in added if token["id"] not in outside]
        names = {number: piece for number, piece in names.items() if number not in outside}
    rest = used_ids | _indispensable(model, names)
    if model["type"] == "BPE":
        rest = _with_parts(model, names, rest)
    kept = np.array([*sorted(special), *sorted(rest - special)], np.int32)
    new_ids = {int(old): new for new, old in enumerate(kept)}
    if model["type"] in ("WordPiece", "BPE"):
        model["vocab"] = {names[old]: new for old, new in new_ids.items()}
    elif max(new_ids) < len(model["vocab"]):
        model["vocab"] = [model["vocab"][old] for old in new_ids]
        model["unk_id"] = new_ids[tokenizer.unk_id]
    else:
        outside = names[max(new_ids)]
        raise ValueError(f"can't cut: piece {outside!r} was added outside of the Unigram model")
    for token in added:
        token["id"] = new_ids[token["id"]]
    content["post_processor"] = None
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    pad_id, unk_id, cls_id, sep_id = (new_ids[old] for old in tokenizer.special_ids)
    frame(backend, cls_id, sep_id)
    return Tokenizer(backend, pad_id, unk_id, cls_id, sep_id), kept


def _indispensable(model: dict[str, Any], names: dict[int, str]) -> set[int]:
    """Single characters; for Unigram also the bytes, and what the cost of the unknown hangs on."""
    prefix = model.get("continuing_subword_prefix") or "▁"
    kept = {number for number, piece in names.items() if len(piece.removeprefix(prefix)) <= 1}
    if model["type"] == "Unigram":
        kept.add(min(range(len(model["vocab"])), key=lambda number: model["vocab"][number][1]))
        if model.get("byte_fallback"):
            kept |= {n for n, piece in names.items() if re.fullmatch("<0x[0-9A-F]{2}>", piece)}
    return kept


def _with_parts(model: dict[str, Any], names: dict[int, str], wanted: set[int]) -> set[int]:
    """``wanted`` and all pieces that merge into them; other merges are taken out of ``model``."""
    numbers = {piece: number for number, piece in names.items()}
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    sources: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        sources.setdefault("".join(pair), []).append(pair)
    kept, left = set(wanted), [names[number] for number in wanted]
    while left:
        for pair in sources.get(left.pop(), ()):
            for part in pair:
                if numbers[part] not in kept:
                    kept.add(numbers[part])
                    left.append(part)
    staying = {names[number] for number in kept}
    model["merges"] = [list(pair) for pair in pairs if "".join(pair) in staying]
    return kept
