"""Text, or a pair of texts -> its class. NumPy and tokenizers only: runs without JAX."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.readers import PAIR, UNDETERMINED
from xdistil_jax.deploy.bundle import Bundle, BundleError
from xdistil_jax.deploy.tagger import LOGITS, find_bundle, word_logits
from xdistil_jax.labels import ClassSet
from xdistil_jax.text import words_of


class Prediction(NamedTuple):
    """The likeliest class, and how likely the student holds it, from 0 to 1."""

    label: str
    probability: float


class Classifier:
    """A deployed student of whole texts."""

    def __init__(self, bundle: Bundle) -> None:
        if bundle.kind not in LOGITS:
            kinds = ", ".join(LOGITS)
            raise BundleError(
                f"a student of kind {bundle.kind!r}: this version classifies with {kinds}"
            )
        if not isinstance(bundle.tagset, ClassSet):
            raise BundleError("this student tags words: take Tagger (tag)")
        self.bundle = bundle

    @classmethod
    def load(cls, folder: str | Path) -> "Classifier":
        """Read a student's folder, or the run folder that contains it, on disk or in a bucket.

        Raises:
            BundleError: if the folder holds no whole student, or one that tags words.
            StorageError: if the bucket can't be read.
        """
        return cls(find_bundle(folder))

    def __call__(self, texts: Sequence[str | tuple[str, str]]) -> list[Prediction]:
        """The class of each text, or pair of texts, in order; what is too long is cut.

        Raises:
            ValueError: for a single text where the student was trained on pairs, or a pair where it
                was trained on single texts.
        """
        classes = self.bundle.tagset.classes
        for text in texts:
            _refuse_other(text, self.bundle.pairs)
        found = []
        for logits in word_logits(self.bundle, [_sentence(text) for text in texts]):
            odds = np.exp(logits[0] - logits[0].max())
            best = int(odds.argmax())
            found.append(Prediction(classes[best], float(odds[best] / odds.sum())))
        return found


def _refuse_other(text: str | tuple[str, str], pairs: bool | None) -> None:
    single = isinstance(text, str)
    if pairs and single:
        raise ValueError(
            f"{text[:40]!r} is a single text, and this student was trained on pairs: give both as "
            "(first, second), or with a tab between them"
        )
    if pairs is False and not single:
        raise ValueError(
            f"{text[0][:40]!r} is the first text of a pair, and this student was trained on single "
            "texts: give one string, without a tab"
        )


def _sentence(text: str | tuple[str, str]) -> Sentence:
    parts = (text,) if isinstance(text, str) else text
    first, *others = (words_of(part) for part in parts)
    words = (*first, *(word for part in others for word in (PAIR, *part)))
    return Sentence(words, None, UNDETERMINED)
