"""Text -> spans with character offsets. NumPy and tokenizers only: runs without JAX."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from xdistil_jax import storage
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.encode import encode_in_memory, stitch
from xdistil_jax.deploy.bundle import Bundle, BundleError, load_bundle
from xdistil_jax.deploy.transformer import transformer_logits
from xdistil_jax.labels import ClassSet, spans
from xdistil_jax.text import split_words

_ROWS = 32


class Entity(NamedTuple):
    """``text == source[start:end]``, offsets in code points."""

    text: str
    type: str
    start: int
    end: int


class Tagger:
    """A deployed student."""

    def __init__(self, bundle: Bundle) -> None:
        if bundle.kind not in LOGITS:
            kinds = ", ".join(LOGITS)
            raise BundleError(f"a student of kind {bundle.kind!r}: this version tags with {kinds}")
        if isinstance(bundle.tagset, ClassSet):
            raise BundleError("this student classifies whole texts: take Classifier (predict)")
        self.bundle = bundle

    @classmethod
    def load(cls, folder: str | Path) -> "Tagger":
        """Read a student's folder, or the run folder that contains it, on disk or in a bucket.

        Raises:
            BundleError: if the folder holds no whole student.
            StorageError: if the bucket can't be read.
        """
        return cls(find_bundle(folder))

    def __call__(self, texts: Sequence[str]) -> list[list[Entity]]:
        """The entities of each text, in order; texts of any length, in windows where need be."""
        words = [split_words(text) for text in texts]
        sentences = [Sentence(tuple(word.text for word in each), None, "und") for each in words]
        return [
            [
                Entity(text[each[a].start : each[b - 1].end], kind, each[a].start, each[b - 1].end)
                for kind, a, b in spans(tags)
            ]
            for text, each, tags in zip(texts, words, self.tags(sentences), strict=True)
        ]

    def tags(self, sentences: Sequence[Sentence]) -> list[tuple[str, ...]]:
        """The tag of each word of each sentence."""
        bundle = self.bundle
        best = (
            bundle.tagset.best(each, bundle.decoding) for each in word_logits(bundle, sentences)
        )
        return [bundle.tagset.decode(numbers) for numbers in best]


def find_bundle(folder: str | Path) -> Bundle:
    """The student in a folder, or in the run folder that contains it, on disk or in a bucket.

    Raises:
        BundleError: if the folder holds no whole student.
        StorageError: if the bucket can't be read.
    """
    folder = storage.find_run(folder, writes=False)
    inner = folder / "student"
    return load_bundle(inner if inner.is_dir() else folder)


def word_logits(bundle: Bundle, sentences: Sequence[Sentence]) -> list[Float[np.ndarray, "W C"]]:
    """The logits of each word of each sentence; a text to classify is one word."""
    if not sentences:
        return []
    store = encode_in_memory(
        sentences, bundle.tokenizer, bundle.tagset, max_length=bundle.max_length
    )
    logits = np.empty((len(store.tokens), len(bundle.tagset)), np.float32)
    for rows, tokens, lengths in _batches(store.lengths, store.offsets, store.tokens):
        found = LOGITS[bundle.kind](bundle, tokens, lengths)
        for start, line, length in zip(store.offsets[rows], found, lengths, strict=True):
            logits[start : start + length] = line[:length]
    return stitch(store, logits)


def _batches(
    lengths: np.ndarray, offsets: np.ndarray, flat: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows, tokens [B T], lengths [B]), rows of similar length together."""
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), _ROWS):
        rows = order[first : first + _ROWS]
        tokens = np.zeros((len(rows), lengths[rows].max()), np.int64)
        for line, row in zip(tokens, rows, strict=True):
            line[: lengths[row]] = flat[offsets[row] : offsets[row + 1]]
        yield rows, tokens, lengths[rows]


def bilstm_logits(
    bundle: Bundle, tokens: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, "B"]
) -> Float[np.ndarray, "B T C"]:
    """The student's forward pass, equal to ``models.bilstm`` in fp32.

    Of a classifier all pieces but the first are without logits (0).
    """
    weights = bundle.weights
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    x = weights["embed/table"][tokens]
    directions = [(x, real, 0), (x[:, ::-1], real[:, ::-1], 1)]
    states = [_lstm(part, mask, weights, number) for part, mask, number in directions]
    both = np.concatenate([states[0], states[1][:, ::-1]], axis=-1)
    pool = bundle.sizes.get("pool", "none")
    if pool != "none":
        both = _pooled(both, real, pool)[:, None]
    projected = both @ weights["projection/kernel"] + weights["projection/bias"]
    if bundle.sizes["projection"] == "gelu":
        inner = np.sqrt(2 / np.pi).astype(np.float32) * (projected + 0.044715 * projected**3)
        projected = 0.5 * projected * (1 + np.tanh(inner))
    top = projected if bundle.sizes["head_on"] == "projection" else both
    logits = top @ weights["head/kernel"] + weights["head/bias"]
    return np.pad(logits, ((0, 0), (0, tokens.shape[1] - logits.shape[1]), (0, 0)))


def _pooled(
    states: Float[np.ndarray, "B T H2"], real: Bool[np.ndarray, "B T"], pool: str
) -> Float[np.ndarray, "B H2"]:
    """``models.bilstm.pool_states``."""
    if pool == "max":
        found = np.where(real[..., None], states, -np.inf).max(1)
        return np.where(real.any(1, keepdims=True), found, 0).astype(states.dtype)
    forth, back = np.split(states, 2, axis=-1)
    last = np.maximum(real.sum(1) - 1, 0)
    return np.concatenate([forth[np.arange(len(forth)), last], back[:, 0]], axis=-1)


def _lstm(
    x: np.ndarray, real: np.ndarray, weights: dict[str, np.ndarray], number: int
) -> np.ndarray:
    gates = x @ weights["bilstm/kernel"][number] + weights["bilstm/bias"][number]
    recurrent = weights["bilstm/recurrent"][number]
    h = c = np.zeros((len(x), len(recurrent)), np.float32)
    states = np.zeros((*x.shape[:2], len(recurrent)), np.float32)
    for step in range(x.shape[1]):
        i, f, g, o = np.split(gates[:, step] + h @ recurrent, 4, axis=-1)
        mask = real[:, step, None]
        c = np.where(mask, _sigmoid(f) * c + _sigmoid(i) * np.tanh(g), c)
        h = np.where(mask, _sigmoid(o) * np.tanh(c), h)
        states[:, step] = np.where(mask, h, 0)
    return states


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


LOGITS = {"bilstm": bilstm_logits, "transformer": transformer_logits}
