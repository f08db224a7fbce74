"""What a run does otherwise where whole texts are classified."""

from dataclasses import replace
from typing import Any

from xdistil_jax.data.tokenizer import Tokenizer
from xdistil_jax.labels import ClassSet, Labels


def separated(spec: Any, tokenizer: Tokenizer, labels: Labels) -> Any:
    """An encoder's spec that gives the second text of a pair its type, if it has two types.

    That of a tagger stays as it is.
    """
    if isinstance(labels, ClassSet) and getattr(spec, "token_types", 0) > 1:
        return replace(spec, separator=tokenizer.sep_id)
    return spec
