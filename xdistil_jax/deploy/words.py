"""Sentences -> logits of their words: windows, batches of similar length, and who computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import numpy as np

from xdistil_jax import storage
from xdistil_jax.data.encode import encode_in_memory, stitch
from xdistil_jax.data.record import Sentence
from xdistil_jax.deploy.bilstm import bilstm_logits
from xdistil_jax.deploy.bundle import Bundle, BundleError, load_bundle
from xdistil_jax.deploy.transformer import transformer_logits
from xdistil_jax.labels import Labels
from xdistil_jax.models import hub

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Precision = Literal["auto", "fp32", "int8"]
"""``auto`` is fp32, unless an int8 graph is all that there is."""

GRAPHS = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
LOGITS = {"bilstm": bilstm_logits, "transformer": transformer_logits}
_WEIGHTS = "model.safetensors"
_OTHERS = ("config.json", "tokenizer.json", "labels.json")
# What the logits may be computed from, the first that is there.
_MODELS = {
    "auto": (GRAPHS["fp32"], _WEIGHTS, GRAPHS["int8"]),
    "fp32": (GRAPHS["fp32"], _WEIGHTS),
    "int8": (GRAPHS["int8"],),
}
_ROWS = 32


class Student(NamedTuple):
    """A bundle, and its forward pass: (tokens [B T], lengths [B]) -> logits fp32 [B T C]."""

    bundle: Bundle
    logits: Callable[[Int[np.ndarray, "B T"], Int[np.ndarray, "B"]], Float[np.ndarray, "B T C"]]


class Deployed:
    """A student that was opened, and takes labels of one kind; several threads may use it."""

    _LABELS: ClassVar[type[Labels]]
    _OTHERWISE: ClassVar[str]
    """What to say of one with other labels."""

    def __init__(self, student: Student | Bundle) -> None:
        self._student = in_numpy(student) if isinstance(student, Bundle) else student
        self.bundle = self._student.bundle
        if not isinstance(self.bundle.tagset, self._LABELS):
            raise BundleError(self._OTHERWISE)

    @classmethod
    def load(
        cls,
        place: str | Path,
        *,
        revision: str | None = None,
        threads: int | None = None,
        precision: Precision = "auto",
    ) -> Self:
        """Read a student: its folder, the run folder around it, or ``owner/name`` on the hub.

        A run folder may lie in a bucket; ``revision`` is a branch, tag or commit on the hub. One
        with a graph (see ``xdistil export``) is computed by onnxruntime with so many ``threads``
        (None: all cores); one without by NumPy, which has settings of its own for them. ``int8``
        takes the smaller graph.

        Raises:
            BundleError: if there is no whole student, none of this precision, or one of other
                labels.
            StorageError: if the bucket can't be read.
            ValueError: for a precision that there isn't, or less than one thread.
        """
        options = {"revision": revision, "threads": threads, "precision": precision}
        return cls(open_student(place, **options))


def open_student(
    place: str | Path,
    *,
    revision: str | None = None,
    threads: int | None = None,
    precision: Precision = "auto",
) -> Student:
    """A student, computed by onnxruntime where it comes with a graph, and by NumPy elsewhere.

    ``place`` is its folder, the run folder that contains it, on disk or in a bucket, or a name on
    the Hugging Face hub, of which ``revision`` is a branch, tag or commit.

    Raises:
        BundleError: if there is no whole student, or none of this precision.
        StorageError: if the bucket can't be read.
        ValueError: for a precision that there isn't, or less than one thread.
    """
    if precision not in _MODELS:
        raise ValueError(f"precision is {precision!r}: expected {', '.join(_MODELS)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}: expected at least 1, or None for all cores")
    folder, model = _find(place, revision, _MODELS[precision])
    if model == _WEIGHTS:
        return in_numpy(load_bundle(folder))
    from xdistil_jax.deploy.graph import check_graph
    from xdistil_jax.deploy.runtime import Runtime

    bundle = load_bundle(folder, graph=model)
    check_graph(folder / model)
    return Student(bundle, Runtime(folder / model, threads).logits)


def in_numpy(bundle: Bundle) -> Student:
    """A student whose weights were read, computed by NumPy."""
    return Student(bundle, lambda tokens, lengths: LOGITS[bundle.kind](bundle, tokens, lengths))


def _find(place: str | Path, revision: str | None, models: Sequence[str]) -> tuple[Path, str]:
    """A student's folder, and which of the files ``models`` is there."""
    if not hub.is_name(place):
        if revision is not None:
            raise BundleError(f"revision {revision}: {place} is no name on the Hugging Face hub")
        folder = storage.find_run(place, writes=False)
        inner = folder / "student"
        folder = inner if inner.is_dir() else folder
        return folder, next((each for each in models if (folder / each).is_file()), models[-1])
    for model in models:
        try:
            folder = hub.find_folder(place, revision, [*_OTHERS, model])
        except hub.CheckpointError as error:
            raise BundleError(str(error)) from error
        if (folder / model).is_file():
            break
    return folder, model


def word_logits(student: Student, sentences: Sequence[Sentence]) -> list[Float[np.ndarray, "W C"]]:
    """The logits of each word of each sentence; a text to classify is one word.

    Raises:
        BundleError: if the student's tokenizer can't cut them, or the logits aren't finite.
    """
    if not sentences:
        return []
    bundle = student.bundle
    try:
        store = encode_in_memory(
            sentences, bundle.tokenizer, bundle.tagset, max_length=bundle.max_length
        )
    except ValueError as error:
        raise BundleError(str(error)) from error
    logits = np.empty((len(store.tokens), len(bundle.tagset)), np.float32)
    for rows, tokens, lengths in _batches(store.lengths, store.offsets, store.tokens):
        found = student.logits(tokens, lengths)
        if found.shape != (*tokens.shape, logits.shape[1]):
            raise BundleError(
                f"the student gives logits of shape {found.shape} for {logits.shape[1]} labels: "
                "its files don't belong together"
            )
        for start, line, length in zip(store.offsets[rows], found, lengths, strict=True):
            logits[start : start + length] = line[:length]
    if not np.isfinite(logits).all():
        raise BundleError("the student's logits aren't finite: its weights are damaged")
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
