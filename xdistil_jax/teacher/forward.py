"""The teacher's forward pass over rows of a store: sharded, jitted, one batch ahead of the host."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Int, Shaped, UInt64

from xdistil_jax import sharding
from xdistil_jax.models.functional import Functional
from xdistil_jax.teacher.codec import CODECS, NotFiniteError, encode_logits
from xdistil_jax.teacher.manifest import CacheSettings, hidden_name
from xdistil_jax.teacher.plan import Cut
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


Encoded = tuple[Work, dict[str, np.ndarray]]
"""A batch and the arrays of its real tokens, by their names on disk."""


@partial(jax.jit, static_argnames=("functional", "layers", "dtype", "rows"))
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

    def run(self, works: Iterable[Work]) -> Iterator[Encoded]:
        """Batch after batch; the devices compute the next one while the host encodes this one."""
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
        logits = 2 * widths.pop("logits")
        return logits + sum(map(CODECS[self.settings.codec].bytes_per_token, widths.values()))

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
        """Wait for a batch and encode its real tokens, end to end."""
        lengths = self.store.lengths[work.rows]
        real = np.arange(work.cut.width) < lengths[:, None]
        encoded = {}
        for name, states in output.items():
            encode = encode_logits if name == "logits" else CODECS[self.settings.codec].encode
            try:
                encoded[name] = encode(np.asarray(states)[: len(work.rows)][real])
            except NotFiniteError as error:
                row = work.rows[np.searchsorted(np.cumsum(lengths), error.token, side="right")]
                raise ValueError(
                    f"sentence {self.store.sentence[row]} (row {row}): the teacher's {name} holds "
                    "a NaN, an infinity or a number too large for the cache; expected finite "
                    f"ones. Check its weights, or compute in float32 (now {self.settings.dtype})"
                ) from error
        return encoded
