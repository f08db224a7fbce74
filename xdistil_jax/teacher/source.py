"""A teacher as the train step sees it, and the one that is run anew in every step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from xdistil_jax.models.functional import Spec, build
from xdistil_jax.types import Batch, EncoderOutput, Params


class Teacher(Protocol):
    """What gives the targets of a batch: a cache, or the teacher itself."""

    @property
    def arrays(self) -> PyTree:
        """What stays on the devices."""
        ...

    @property
    def words_only(self) -> bool:
        """Does it speak of first pieces only, because it cuts words otherwise?"""
        ...

    @property
    def lookup(self) -> Callable[[PyTree, PyTree, Batch], EncoderOutput]:
        """``lookup(arrays, streamed, batch)``: pure, runs inside ``jit``, frozen and hashable.

        Gives the chosen layers and the logits in fp32; what stands on padding means nothing.
        """
        ...

    def stream(self, rows: Int[np.ndarray, "*K B"], width: int) -> PyTree:
        """What travels with the batch: arrays with the axes of ``rows`` first; zeros for row -1."""
        ...


@dataclass(frozen=True)
class OnlineLookup:
    """The teacher's forward pass, without dropout and without a gradient."""

    spec: Spec
    layers: tuple[str, ...]
    dtype: str

    def __call__(self, arrays: dict[str, Any], streamed: tuple[()], batch: Batch) -> EncoderOutput:
        kept = arrays["kept"]
        tokens = batch.tokens if kept is None else kept[batch.tokens]
        output = build(self.spec).apply(
            arrays["params"], tokens, batch.lengths, batch.token_types, dtype=jnp.dtype(self.dtype)
        )
        hidden = {layer: output.hidden[layer].astype(jnp.float32) for layer in self.layers}
        logits = output.logits.astype(jnp.float32)
        return jax.lax.stop_gradient(EncoderOutput(hidden, logits, output.attention))


@dataclass(frozen=True, eq=False)
class OnlineTeacher:
    """Runs the teacher in every step: nothing on disk, and the teacher's price in each step.

    ``kept[student's id]`` is the teacher's id where the student's vocabulary was cut, else None.
    """

    spec: Spec
    params: Params
    kept: Int[np.ndarray, "V"] | None
    layers: tuple[str, ...]
    dtype: str = "float32"
    arrays: dict[str, Any] = field(init=False, repr=False)
    lookup: OnlineLookup = field(init=False)
    words_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", {"params": self.params, "kept": self.kept})
        lookup = OnlineLookup(self.spec, tuple(self.layers), jnp.dtype(self.dtype).name)
        object.__setattr__(self, "lookup", lookup)

    def stream(self, rows: Int[np.ndarray, "*K B"], width: int) -> tuple[()]:
        """Nothing travels: the tokens of the batch are enough."""
        return ()
