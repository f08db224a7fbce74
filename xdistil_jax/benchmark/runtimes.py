"""A contender in its runtime, ready to be called. Each runs in a process of its own."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from xdistil_jax import trees
from xdistil_jax.benchmark.in_torch import in_torch
from xdistil_jax.benchmark.subjects import Batch, Contender, Makers, batches, load_model
from xdistil_jax.deploy.bundle import Bundle
from xdistil_jax.deploy.classifier import Classifier
from xdistil_jax.deploy.onnx import build_graph, dynamic_int8, save_graph
from xdistil_jax.deploy.runtime import Runtime
from xdistil_jax.deploy.tagger import Tagger
from xdistil_jax.deploy.words import Student, open_student
from xdistil_jax.labels import TagSet
from xdistil_jax.models.functional import build
from xdistil_jax.students import read_spec
from xdistil_jax.text import split_words

_DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16}


def prepare(contender: Contender) -> Makers:
    """What can be timed of it."""
    return _RUNTIMES[contender.runtime](contender)


def _in_jax(contender: Contender) -> Makers:
    bundle, dtype = load_model(contender), _DTYPES[contender.precision]
    spec = read_spec(bundle)
    params = jax.device_put(
        jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), trees.unflatten(bundle.weights))
    )
    forward = jax.jit(lambda *given: build(spec).apply(*given, dtype=dtype).logits)

    def logits(*given: np.ndarray) -> np.ndarray:
        return np.asarray(forward(params, *(each.astype(np.int32) for each in given)))

    pieces = _pieces(logits, batches(bundle))
    if contender.spec is not None:
        return {"pieces": pieces}
    return {"pieces": pieces, "text": _texts(Student(bundle, logits))}


def _in_onnxruntime(contender: Contender) -> Makers:
    if contender.spec is None:
        options = {"threads": contender.threads, "precision": contender.precision}
        student = open_student(contender.folder, **options)
        draw = batches(load_model(contender))
        return {"pieces": _pieces(student.logits, draw), "text": _texts(student)}
    bundle = load_model(contender)
    graph = build_graph(bundle)
    graph = dynamic_int8(graph) if contender.precision == "int8" else graph
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        save_graph(graph, path)
        return {"pieces": _pieces(Runtime(path, contender.threads).logits, batches(bundle))}


def _pieces(
    logits: Callable[..., object], draw: Callable[[int, int], Batch]
) -> Callable[[int, int], Callable[[], object]]:
    return lambda rows, length: partial(logits, *draw(rows, length))


def _texts(student: Student) -> Callable[[int, int], Callable[[], object]]:
    """Texts of whole words that are one piece each, so that ``length`` pieces come of them."""
    answer = (Tagger if isinstance(student.bundle.tagset, TagSet) else Classifier)(student)
    words = single_pieces(student.bundle)
    random = np.random.default_rng(0)

    def make(rows: int, length: int) -> Callable[[], object]:
        chosen = random.choice(words, (rows, max(length - 2, 1))).tolist()
        if student.bundle.pairs:
            half = len(chosen[0]) // 2
            return partial(answer, [(" ".join(row[:half]), " ".join(row[half:])) for row in chosen])
        return partial(answer, [" ".join(row) for row in chosen])

    return make


def single_pieces(bundle: Bundle) -> list[str]:
    """Words that the student's tokenizer leaves whole.

    Raises:
        ValueError: if it has none.
    """
    known = (piece.removeprefix("▁") for piece in sorted(bundle.tokenizer.backend.get_vocab()))
    words = [word for word in known if word.isalpha() and len(split_words(word)) == 1]
    _, offsets = bundle.tokenizer.word_pieces(words)
    whole = [word for word, count in zip(words, np.diff(offsets), strict=True) if count == 1]
    if not whole:
        raise ValueError("the student's tokenizer leaves no word whole: there is no text to time")
    return whole


_RUNTIMES: Mapping[str, Callable[[Contender], Makers]] = {
    "JAX": _in_jax,
    "PyTorch": in_torch,
    "onnxruntime": _in_onnxruntime,
}
