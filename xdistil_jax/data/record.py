"""The record that every reader gives and every model takes: a sentence. Standard library only."""

from typing import NamedTuple

UNDETERMINED = "und"
PAIR = "\x1e"
"""No word of any text: ``words_of`` gives no control characters."""


class Sentence(NamedTuple):
    """Words of one sentence, their IOB2 tags (None for transfer text), and its language.

    A text with a class has that one alone for its tags. Of a pair of texts, ``PAIR`` stands between
    the words of the two.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    language: str
