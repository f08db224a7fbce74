"""What a run does otherwise where whole texts are classified."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from xdistil_jax.data.readers import Sentence
from xdistil_jax.data.texts import are_pairs
from xdistil_jax.data.tokenizer import Tokenizer
from xdistil_jax.labels import ClassSet, Labels


def separated(spec: Any, tokenizer: Tokenizer, labels: Labels) -> Any:
    """An encoder's spec that gives the second text of a pair its type, if it has two types.

    That of a tagger stays as it is.
    """
    if isinstance(labels, ClassSet) and getattr(spec, "token_types", 0) > 1:
        return replace(spec, separator=tokenizer.sep_id)
    return spec


def takes_pairs(train: Sequence[Sentence], labels: Labels) -> bool | None:
    """Does what learns from ``train`` classify pairs of texts? None where it tags words."""
    return are_pairs(train) if isinstance(labels, ClassSet) else None
