"""The teacher's forward pass over rows of a store: sharded, jitted, one batch ahead of the host."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Float, Int, Shaped, UInt64

from xdistil_jax import sharding
from xdistil_jax.compilation import named
from xdistil_jax.models.functional import Functional
from xdistil_jax.teacher.basis import Bases
from xdistil_jax.teacher.codec import LOGITS, NotFiniteError, find_codec, refuse_non_finite
from xdistil_jax.teacher.manifest import CacheSettings, hidden_name
from xdistil_jax.teacher.shapes import Cut
from xdistil_jax.types import Params


class Rows(Protocol):
    """What a build reads of an ``EncodedStore``."""

    @property
    def tokens(self) -> Int[np.ndarray, "N"]: ...
    @property
    def lengths(self) -> Int[np.ndarray, "R"]: ...
    @property
    def offsets(self) -> Int[np.ndarray, "R+1"]: ...
    @property
    def sentence(self) -> Int[np.ndarray, "R"]: ...
    @property
    def max_length(self) -> int: ...
    def row_hashes(self) -> UInt64[np.ndarray, "R 2"]: ...


class Work(NamedTuple):
    """A batch of a shard: which rows of the store, and the shape they are computed in."""

    shard: int
    rows: Int[np.ndarray, "B"]
    cut: Cut


Done = tuple[Work, dict[str, np.ndarray]]
"""A batch and the arrays of its real tokens, by their names on disk."""


@partial(jax.jit, static_argnames=("functional", "layers", "dtype", "rows"))
@named("cache pass")
def forward(
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    *,
    functional: Functional,
    layers: tuple[str, ...],
    dtype: str,
    rows: Sharding | None = None,
) -> dict[str, Shaped[Array, "B T W"]]:
    """States of ``layers`` and logits, by the names that they have on disk.

    ``rows`` is how a batch is split, needed where the parameters are split, too.

    Raises:
        ValueError: if the teacher doesn't return one of ``layers``.
    """
    split = {} if rows is None else {"rows": rows}
    output = functional.apply(params, tokens, lengths, dtype=jnp.dtype(dtype), **split)
    if unknown := set(layers) - set(output.hidden):
        raise ValueError(
            f"the teacher returns no hidden state {min(unknown)!r}: choose from "
            f"{', '.join(output.hidden)}"
        )
    return {**{hidden_name(name): output.hidden[name] for name in layers}, "logits": output.logits}


@dataclass(frozen=True, eq=False)
class Pass:
    """A teacher, its parameters on every device of ``mesh``, and the text that it reads."""

    store: Rows
    functional: Functional
    params: Params
    settings: CacheSettings
    mesh: Mesh
    bases: Bases = Bases()

    def run(self, works: Iterable[Work]) -> Iterator[Done]:
        """Batch after batch, encoded.

        Raises:
            ValueError: naming the first sentence of which the teacher says nothing finite.
        """
        for work, states in self._states(works):
            yield work, {name: self._encode(work, name, array) for name, array in states.items()}

    def sample(self, works: Iterable[Work]) -> dict[str, Float[np.ndarray, "N D"]]:
        """The states of each layer in fp32, not encoded.

        Raises:
            ValueError: as ``run`` does.
        """
        parts: dict[str, list[np.ndarray]] = {layer: [] for layer in self.settings.layers}
        for work, states in self._states(works):
            for layer, found in parts.items():
                array = states[hidden_name(layer)].astype(np.float32)
                with self._naming(work, hidden_name(layer)):
                    refuse_non_finite(array)
                found.append(array)
        return {layer: np.concatenate(found) for layer, found in parts.items()}

    def _states(self, works: Iterable[Work]) -> Iterator[Done]:
        """Batch after batch; the devices compute the next one while the host works on this one."""
        ahead = None
        for work in works:
            started = work, self._launch(work)
            if ahead is not None:
                yield ahead[0], self._fetch(*ahead)
            ahead = started
        if ahead is not None:
            yield ahead[0], self._fetch(*ahead)

    def bytes_per_token(self) -> int:
        """What one token takes on disk."""
        batch = jax.ShapeDtypeStruct((1, 1), np.int32), jax.ShapeDtypeStruct((1,), np.int32)
        widths = {
            name: state.shape[-1]
            for name, state in jax.eval_shape(self._program, self.params, *batch).items()
        }
        total = LOGITS.bytes_per_token(widths.pop("logits"))
        kept = {hidden_name(layer): each.directions for layer, each in self.bases.by_layer.items()}
        widths |= {name: directions.shape[1] for name, directions in kept.items()}
        numbers = find_codec(self.settings.codec).numbers
        return total + sum(map(numbers.bytes_per_token, widths.values()))

    @property
    def _program(self) -> Callable[..., dict[str, Array]]:
        rows = sharding.batch_sharding(self.mesh) if sharding.is_split(self.params) else None
        return partial(
            forward, functional=self.functional, layers=self.settings.layers,
            dtype=self.settings.dtype, rows=rows,
        )  # fmt: skip

    def _launch(self, work: Work) -> dict[str, Array]:
        """Start a batch on the devices, without waiting for it."""
        tokens = np.zeros((work.cut.size, work.cut.width), np.int32)
        lengths = np.zeros(work.cut.size, np.int32)
        for slot, row in enumerate(work.rows.tolist()):
            start, stop = self.store.offsets[row : row + 2]
            tokens[slot, : stop - start] = self.store.tokens[start:stop]
            lengths[slot] = stop - start
        return self._program(self.params, *sharding.place_batch((tokens, lengths), self.mesh))

    def _fetch(self, work: Work, output: dict[str, Array]) -> dict[str, np.ndarray]:
        """Wait for a batch and take its real tokens, end to end."""
        real = np.arange(work.cut.width) < self.store.lengths[work.rows][:, None]
        return {name: np.asarray(states)[: len(work.rows)][real] for name, states in output.items()}

    def _encode(self, work: Work, name: str, states: np.ndarray) -> np.ndarray:
        with self._naming(work, name):
            if name == "logits":
                return LOGITS.encode(states)
            layer = name.removeprefix(hidden_name(""))
            return find_codec(self.settings.codec).encode(states, self.bases.by_layer.get(layer))

    @contextmanager
    def _naming(self, work: Work, name: str) -> Iterator[None]:
        """Say of which sentence a state isn't finite."""
        try:
            yield
        except NotFiniteError as error:
            ends = np.cumsum(self.store.lengths[work.rows])
            row = work.rows[np.searchsorted(ends, error.token, side="right")]
            raise ValueError(
                f"sentence {self.store.sentence[row]} (row {row}): the teacher's {name} holds "
                "a NaN, an infinity or a number too large for the cache; expected finite "
                f"ones. Check its weights, or compute in float32 (now {self.settings.dtype})"
            ) from error
