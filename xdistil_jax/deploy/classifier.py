"""Text, or a pair of texts -> its class. NumPy, tokenizers and onnxruntime: runs without JAX."""

from collections.abc import Sequence
from typing import NamedTuple

from xdistil_jax.data.record import PAIR, UNDETERMINED, Sentence
from xdistil_jax.deploy.scores import softmax
from xdistil_jax.deploy.words import Deployed, word_logits
from xdistil_jax.labels import ClassSet
from xdistil_jax.text import words_of


class Prediction(NamedTuple):
    """The likeliest class, and how likely the student holds it, from 0 to 1."""

    label: str
    probability: float


class Classifier(Deployed):
    """A deployed student of whole texts."""

    _LABELS = ClassSet
    _OTHERWISE = "this student tags words: take Tagger (tag)"

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
        for logits in word_logits(self._student, [_sentence(text) for text in texts]):
            odds = softmax(logits[0], self.bundle.temperature)
            best = int(odds.argmax())
            found.append(Prediction(classes[best], float(odds[best])))
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
