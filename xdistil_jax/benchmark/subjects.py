"""What is timed: the student as it was exported, and others of given sizes with random weights."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Int

from xdistil_jax import trees
from xdistil_jax.deploy.bundle import Bundle, load_bundle
from xdistil_jax.models.checkpoints import read_config_spec
from xdistil_jax.models.encoder import EncoderSpec, parameter_shapes
from xdistil_jax.models.families import FAMILIES
from xdistil_jax.models.hub import CheckpointError
from xdistil_jax.models.transformer import TransformerSpec

Runtime = Literal["JAX", "PyTorch", "onnxruntime"]
Precision = Literal["fp32", "bf16", "int8"]
Call = Callable[[], object]
Batch = tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B"]]
"""Tokens and lengths, int64."""
Makers = dict[str, Callable[[int, int], Call]]
"""``pieces`` and, of an exported student, ``text``: (rows, length) -> what is timed."""

STUDENT, TEACHER, SIX = "student", "teacher", "6-layer transformer"
_XLM_R = {"token_types": 1, "positions": 514, "position_offset": 2, "family": "xlm-roberta"}
TEACHERS = {
    "mbert-base": EncoderSpec(119_547, 768, 12, 12, 3072),
    "xlm-r-base": EncoderSpec(250_002, 768, 12, 12, 3072, norm_epsilon=1e-5, **_XLM_R),
    "xlm-r-large": EncoderSpec(250_002, 1024, 24, 16, 4096, norm_epsilon=1e-5, **_XLM_R),
}
"""Speed needs no training: sizes will do."""
RUNTIMES: dict[Runtime, tuple[Precision, ...]] = {
    "JAX": ("fp32", "bf16"),
    "PyTorch": ("fp32", "bf16", "int8"),
    "onnxruntime": ("fp32", "int8"),
}
"""What the teacher may be computed by; onnxruntime has no products of bf16 on x86."""


@dataclass(frozen=True)
class Contender:
    """A model in a runtime. ``spec`` None is the student in ``folder``; others are random."""

    model: str
    runtime: Runtime
    precision: Precision
    folder: str
    spec: EncoderSpec | None = None
    threads: int | None = None

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", threads {self.threads}"
        return f"{self.model}, {self.how}{threads}"

    @property
    def how(self) -> str:
        """``onnxruntime int8``."""
        return f"{self.runtime} {self.precision}"


def teacher_spec(name: str, classes: int) -> EncoderSpec:
    """The sizes of a teacher: by name, or of a checkpoint's config.json.

    Raises:
        ValueError: if there is none, or it is of a family that isn't BERT's kind.
    """
    if name in TEACHERS:
        return replace(TEACHERS[name], classes=classes)
    try:
        spec = read_config_spec(name, classes)
    except CheckpointError as error:
        known = ", ".join(TEACHERS)
        raise ValueError(f"--teacher {name}: {error}. Known by name are {known}") from error
    if not isinstance(spec, EncoderSpec):
        kinds = ", ".join(each for each, known in FAMILIES.items() if known.kind is EncoderSpec)
        raise ValueError(f"--teacher {name} is a {spec.family}: expected one of {kinds}")
    return replace(spec, columns=(), pooler=False)


def six_layers(bundle: Bundle) -> EncoderSpec:
    """XtremeDistilTransformers' l6-h384, with the student's pieces and tags."""
    pieces, classes = bundle.tokenizer.vocab_size, len(bundle.tagset)
    return EncoderSpec(pieces, 384, 6, 12, 1536, classes=classes)


def load_model(contender: Contender) -> Bundle:
    """The student, or one with random weights in its place, for the same tags."""
    bundle = load_bundle(contender.folder)
    if contender.spec is None:
        return bundle
    spec = TransformerSpec(replace(contender.spec, stacked=False), imitates=())
    # Drawn once and repeated: 180M draws take longer than all else.
    drawn = 0.02 * np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    shapes = trees.leaves(parameter_shapes(spec.encoder))
    weights = {path: np.resize(drawn, shape) for path, shape in shapes}
    longest = contender.spec.longest
    return replace(
        bundle, kind="transformer", sizes=asdict(spec), weights=weights, max_length=longest
    )


def batches(bundle: Bundle) -> Callable[[int, int], Batch]:
    """(rows, length) -> random tokens of full rows; holds on to nothing of the model."""
    pieces = len(bundle.weights["embed/table"])

    def draw(rows: int, length: int) -> Batch:
        tokens = np.random.default_rng(0).integers(0, pieces, (rows, length))
        return tokens, np.full(rows, length)

    return draw
