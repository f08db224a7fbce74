"""Text and targets that stay on the devices: batches are gathered there, by a program.

Rows belong to S fixed logical shards, a batch takes an equal share from each, and a device owns
whole shards: so it gathers from what is its own, and nothing is exchanged. What comes out is, bit
for bit, what ``feed.Feeder`` streams from the host.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from xdistil_jax.distill.feed import Streams, masked_batch
from xdistil_jax.sharding import batch_sharding, place_batch
from xdistil_jax.types import Batch


class Shard(NamedTuple):
    """A logical shard on each of D devices, whose parts lie end to end in every leaf.

    Leaves of ``pieces`` [D N W] have the pieces of the rows end to end, without axes of their own:
    a TPU would pad those, or copy all to turn them round. Leaves of ``rows`` [D R, …] have an entry
    for each row; row r begins at piece ``start[r]``. Row 0 is none: it has no piece, and for it
    stands what the teacher streams where a batch is filled up.
    """

    pieces: tuple[dict[str, Any], list[Any]]
    rows: list[Any]
    start: Int[Array, "R"]
    length: Int[Array, "R"]


Held = tuple[Shard, ...]
"""All that lies on the devices: with S logical shards S / D for each of the D of ``data``."""


@dataclass(frozen=True)
class Layout:
    """How what a teacher streams is told apart: which of its leaves have an entry a piece.

    ``shapes`` are those of such an entry, in their order.
    """

    structure: Any
    of_pieces: tuple[bool, ...]
    shapes: tuple[tuple[int, ...], ...]
    words_only: bool

    @classmethod
    def of(cls, teacher: Streams | None) -> "Layout":
        """The leaves of pieces are those that grow with the width of the batch."""
        nothing, words_only = np.array([-1]), teacher is not None and teacher.words_only
        narrow, wide = (
            jax.tree.flatten(() if teacher is None else teacher.stream(nothing, width))
            for width in (1, 2)
        )
        grown = tuple(a.shape != b.shape for a, b in zip(narrow[0], wide[0], strict=True))
        shapes = (leaf.shape[2:] for leaf, grows in zip(wide[0], grown, strict=True) if grows)
        return cls(narrow[1], grown, tuple(shapes), words_only)

    def split(self, streamed: PyTree) -> tuple[list[Any], list[Any]]:
        """(leaves with an entry a piece, leaves with an entry a row)."""
        leaves = list(zip(self.of_pieces, jax.tree.leaves(streamed), strict=True))
        return [leaf for each, leaf in leaves if each], [leaf for each, leaf in leaves if not each]

    def join(self, pieces: Sequence[Any], rows: Sequence[Any]) -> PyTree:
        """The inverse of ``split``."""
        parts = {True: iter(pieces), False: iter(rows)}
        return jax.tree.unflatten(self.structure, [next(parts[each]) for each in self.of_pieces])


@lru_cache(maxsize=64)
def _gather_call(mesh: Mesh, layout: Layout, width: int) -> Callable[..., tuple[Batch, PyTree]]:
    """(held, rows [K B], slots [K B], labelled [B]) -> (batches [K B T], what the teacher says).

    A program of its own, so that the step is the one that streamed batches go into.
    """
    over_data, rows_over_data = PartitionSpec("data"), PartitionSpec(None, "data")
    own = jax.shard_map(
        partial(_gather, layout, width), mesh=mesh,
        in_specs=(over_data, rows_over_data), out_specs=rows_over_data,
    )  # fmt: skip

    def gather(
        held: Held, rows: Int[Array, "K B"], slots: Int[Array, "K B"], labelled: Bool[Array, "B"]
    ) -> tuple[Batch, PyTree]:
        (text, said), of_rows, lengths = own(held, slots)
        batch = masked_batch(
            rows, text["tokens"], lengths, text["first"],
            jnp.where(text["first"], text["labels"].astype(jnp.int32), -1),
            _real(lengths, width), labelled[None, :, None], words_only=layout.words_only,
        )  # fmt: skip
        return batch, layout.join(said, of_rows)

    return jax.jit(gather, out_shardings=batch_sharding(mesh, leading=1))


def _real(lengths: Int[Array, "*K"], width: int) -> Bool[Array, "*K T"]:
    return (
        jax.lax.broadcasted_iota(jnp.int32, (*lengths.shape, width), lengths.ndim)
        < (lengths[..., None])
    )


def _gather(
    layout: Layout, width: int, held: Held, slots: Int[Array, "K b"]
) -> tuple[PyTree, PyTree, Int[Array, "K b"]]:
    """This device's rows of the batches, from its own shards; zeros on padding."""
    by_shard = slots.reshape(len(slots), len(held), -1)
    taken = [_take(layout, width, shard, by_shard[:, n]) for n, shard in enumerate(held)]

    def joined(*leaves: Shaped[Array, "K n *W"]) -> Shaped[Array, "K b *W"]:
        return jnp.stack(leaves, axis=1).reshape(len(slots), -1, *leaves[0].shape[2:])

    return jax.tree.map(joined, *taken)


def _take(
    layout: Layout, width: int, shard: Shard, slots: Int[Array, "K n"]
) -> tuple[PyTree, PyTree, Int[Array, "K n"]]:
    start, length = shard.start[slots], shard.length[slots]
    real = _real(length, width)

    def cut(leaf: Shaped[Array, "NW"], entry: tuple[int, ...] = ()) -> Shaped[Array, "K n T *W"]:
        size = math.prod(entry)
        take = partial(jax.lax.dynamic_slice_in_dim, leaf, slice_size=width * size)
        windows = jax.vmap(jax.vmap(take))(start * size).reshape(*real.shape, *entry)
        mask = real.reshape(*real.shape, *(1,) * len(entry))
        return jnp.where(mask, windows, jnp.zeros((), leaf.dtype))

    text, said = shard.pieces
    of_pieces = (
        {name: cut(leaf) for name, leaf in text.items()},
        [cut(leaf, entry) for leaf, entry in zip(said, layout.shapes, strict=True)],
    )
    return of_pieces, [leaf[slots] for leaf in shard.rows], length


@dataclass(frozen=True)
class Resident:
    """All rows that the stages of a plan draw from, on the devices.

    ``slots`` has for labelled and for transfer text each row's number in its shard.
    """

    held: Held
    layout: Layout
    slots: tuple[Int[np.ndarray, "R"], Int[np.ndarray, "R"]]
    mesh: Mesh

    def gather(
        self, rows: Int[np.ndarray, "K B"], width: int, labelled: Bool[np.ndarray, "B"]
    ) -> tuple[Batch, PyTree]:
        """This process's ``rows`` (-1: empty) -> batches on the devices, and the teacher's part.

        ``labelled`` says from which text each is drawn. Only places travel, and nothing is waited
        for.
        """
        own = np.where(labelled, self.slots[0][rows], self.slots[1][rows])
        slots = np.where(rows >= 0, own, 0).astype(np.int32)
        placed = place_batch((rows.astype(np.int32), slots), self.mesh, leading=1)
        gather = _gather_call(self.mesh, self.layout, width)
        return gather(self.held, *placed, place_batch(labelled, self.mesh))
