"""How sure a student is: probabilities of tags and entities, as its decoding assumes them.

With ``iob2`` the words are a chain whose valid tag sequences are as likely as the product of their
words' softmax says, all others impossible: the distribution whose best sequence the decoding takes.
Then a score is the exact marginal of a tag, or of an entity with these very bounds and type, over
all sequences (forward-backward). With ``argmax`` the words are independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xdistil_jax.chains import align
from xdistil_jax.labels import Decoding, Span, TagSet

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int

# No tag is impossible: without this a valid sequence may have no probability at all.
_LEAST = 1e-30


def softmax(
    logits: Float[np.ndarray, "*rest C"], temperature: float
) -> Float64[np.ndarray, "*rest C"]:
    """Probabilities over the last axis, of the logits over ``temperature``."""
    scaled = logits.astype(np.float64) / temperature
    odds = np.exp(scaled - scaled.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


class _Chain(NamedTuple):
    """float64 [S T C] each: ``alpha`` filtered, ``words`` scaled, so that ``alpha * beta`` are
    marginals; ``ends`` [S T]: the share of what follows that goes on with no entity."""

    alpha: np.ndarray
    beta: np.ndarray
    words: np.ndarray
    ends: np.ndarray


class Scorer:
    """Probabilities in many sentences: s is the words ``bounds[s]`` up to ``bounds[s + 1]``."""

    def __init__(
        self,
        logits: Float[np.ndarray, "W C"],
        bounds: Int[np.ndarray, "S+1"],
        tagset: TagSet,
        decoding: Decoding,
        temperature: float,
    ) -> None:
        self._tagset, self._bounds = tagset, bounds
        words = np.maximum(softmax(logits, temperature), _LEAST)
        if decoding == "argmax":
            inner = 1 - words[:, 2::2]
            self._alpha, self._marginals, self._words = words, words, words
            # What follows an entity of this type is anything but its inside.
            self._after = np.concatenate([inner[1:], np.ones((1, inner.shape[1]))])[: len(inner)]
            self._after[bounds[1:][np.diff(bounds) > 0] - 1] = 1
            return
        chain = _chains(words, bounds)
        self._alpha, self._words, self._marginals = (
            chain.alpha,
            chain.words,
            chain.alpha * chain.beta,
        )
        self._after = np.broadcast_to(chain.ends[:, None], (len(words), len(tagset.types)))

    def of_tags(self, tags: Int[np.ndarray, "W"]) -> Float64[np.ndarray, "W"]:
        """The probability of each word's tag."""
        return np.minimum(self._marginals[np.arange(len(tags)), tags], 1)

    def of_spans(self, number: int, tags: Sequence[int], spans: Sequence[Span]) -> list[float]:
        """The probability of each entity of one sentence, whose words have these tags."""
        start, found = self._bounds[number], []
        for span in spans:
            first, last = start + span.start, start + span.end - 1
            inside = self._tagset.index[f"I-{span.type}"]
            odds = self._alpha[first, tags[span.start]]
            odds *= self._words[first + 1 : last + 1, inside].prod()
            found.append(min(1.0, float(odds * self._after[last, inside // 2 - 1])))
        return found


def _chains(words: Float64[np.ndarray, "W C"], bounds: Int[np.ndarray, "S+1"]) -> _Chain:
    """Forward-backward over valid IOB2 sequences; what is returned is flat, [W C] and [W].

    I- is entered from the B- and I- of its type alone, all else from anywhere. Nothing is summed by
    BLAS, whose last bits depend on a sentence's company.
    """
    at, parts = align(bounds[:-1], np.diff(bounds))
    now = words[at]
    alpha, beta, total = now.copy(), np.ones_like(now), np.empty((len(now), 1))
    before = np.zeros((len(bounds) - 1, words.shape[1]))
    for part in parts:
        joint = alpha[part]
        joint[:, 2::2] *= (before[:, 1::2] + before[:, 2::2])[: len(joint)]
        joint /= joint.sum(1, keepdims=True, out=total[part])
        before = joint
    scaled, ends = now / total, np.ones(len(words))
    for part, after in reversed([*pairwise(parts)]):
        later = scaled[after] * beta[after]
        going = slice(part.start, part.start + len(later))
        ends[going] = later[:, 0] + later[:, 1::2].sum(1)
        beta[going] = ends[going, None]
        inside = later[:, 2::2]
        beta[going, 1::2] += inside
        beta[going, 2::2] += inside
    back = np.empty_like(at)
    back[at] = np.arange(len(at))
    return _Chain(alpha[back], beta[back], scaled[back], ends[back])
