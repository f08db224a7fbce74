"""Text and targets that stay on the devices: batches are gathered there, by a program.

Rows belong to S fixed logical shards, a batch takes an equal share from each, and a device owns
whole shards: so it gathers from what is its own, and nothing is exchanged. What comes out is, bit
for bit, what ``feed.Feeder`` streams from the host.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from xdistil_jax.data.batches import Source
from xdistil_jax.data.encode import EncodedStore, pieces
from xdistil_jax.distill.feed import Streams, masked_batch
from xdistil_jax.sharding import batch_sharding, device_memory, place_batch
from xdistil_jax.types import Batch

# Of a device's memory; the rest is for parameters, moments and activations.
_SHARE = 0.5
# Rows that the teacher is asked for at once.
_CHUNK = 1024


class Held(NamedTuple):
    """What lies on the devices, S logical shards split over ``data``.

    Leaves of ``pieces`` [S, N, …] have the pieces of a shard's rows end to end, those of ``rows``
    [S, R, …] an entry for each row; row r of a shard begins at piece ``start[r]``. Row 0 is none:
    it has no piece, and for it stands what the teacher streams where a batch is filled up.
    """

    pieces: PyTree
    rows: PyTree
    start: Int[Array, "S R"]
    length: Int[Array, "S R"]


@dataclass(frozen=True)
class Layout:
    """How what a teacher streams is told apart: which of its leaves have an entry a piece."""

    structure: Any
    of_pieces: tuple[bool, ...]
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
        return cls(narrow[1], grown, words_only)

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
        partial(_gather, width), mesh=mesh,
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
    width: int, held: Held, slots: Int[Array, "K b"]
) -> tuple[PyTree, PyTree, Int[Array, "K b"]]:
    """This device's rows of the batches, from its own shards; zeros on padding."""
    steps, shards = len(slots), len(held.length)
    taken = jax.vmap(partial(_of_shard, width), (0, 1), 1)(
        held, slots.reshape(steps, shards, -1)
    )  # [K, shards, rows of each, …]
    return jax.tree.map(lambda leaf: leaf.reshape(steps, -1, *leaf.shape[3:]), taken)


def _of_shard(
    width: int, held: Held, slots: Int[Array, "K n"]
) -> tuple[PyTree, PyTree, Int[Array, "K n"]]:
    start, length = held.start[slots], held.length[slots]
    real = _real(length, width)

    def cut(leaf: Shaped[Array, "N *W"]) -> Shaped[Array, "K n T *W"]:
        take = partial(jax.lax.dynamic_slice_in_dim, leaf, slice_size=width)
        windows = jax.vmap(jax.vmap(take))(start)
        mask = real.reshape(*real.shape, *(1,) * (leaf.ndim - 1))
        return jnp.where(mask, windows, jnp.zeros((), leaf.dtype))

    return jax.tree.map(cut, held.pieces), [leaf[slots] for leaf in held.rows], length


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


class _Filling(NamedTuple):
    """What is to be held, and the sizes of a shard."""

    store: EncodedStore
    teacher: Streams | None
    layout: Layout
    by_shard: list[Int[np.ndarray, "r"]]
    most_rows: int
    most_pieces: int

    @classmethod
    def of(
        cls,
        store: EncodedStore,
        sources: tuple[Source, Source],
        teacher: Streams | None,
        shards: int,
        widest: int,
    ) -> "_Filling":
        by_shard = [
            np.concatenate([source.rows[shard::shards] for source in sources])
            for shard in range(shards)
        ]
        # A slice of the widest bucket that begins at any row must not run over the end.
        most = max(int(store.lengths[rows].sum()) for rows in by_shard) + widest
        layout = Layout.of(teacher)
        return cls(store, teacher, layout, by_shard, 1 + max(map(len, by_shard)), most)

    def chunk(self, rows: Int[np.ndarray, "c"]) -> tuple[PyTree, PyTree]:
        """(leaves of the rows' pieces, end to end; leaves of the rows)."""
        store, width = self.store, int(self.store.lengths[rows].max(initial=1))
        index, real = pieces(store, rows, width)
        at = index[real]
        first = (store.word[at] >= 0) & store.owned[at]
        text = {"tokens": store.tokens[at], "first": first, "labels": store.labels[at]}
        said, of_rows = self.layout.split(
            () if self.teacher is None else self.teacher.stream(rows, width)
        )
        return (text, [np.asarray(leaf)[real] for leaf in said]), of_rows

    def shard(self, number: int) -> Held:
        """One shard, filled up with nothing."""
        rows = self.by_shard[number]
        of_pieces, of_rows = self.chunk(np.array([-1]))
        held = (
            jax.tree.map(partial(_zeros, self.most_pieces), of_pieces),
            [np.repeat(leaf, self.most_rows, axis=0) for leaf in of_rows],
        )
        length = np.zeros(self.most_rows, np.int32)
        length[1 : len(rows) + 1] = self.store.lengths[rows]
        start = (np.cumsum(length) - length).astype(np.int32)
        for row in range(0, len(rows), _CHUNK):
            said = self.chunk(rows[row : row + _CHUNK])
            for at, whole, part in zip((start[row + 1], row + 1), held, said, strict=True):
                jax.tree.map(partial(_put, at), whole, part)
        return Held(*held, start, length)

    def bytes_per_shard(self) -> int:
        """Of what a device holds of one shard."""
        text, of_rows = self.chunk(self.by_shard[0][:1])
        one_piece = sum(leaf[:1].nbytes for leaf in jax.tree.leaves(text))
        one_row = 8 + sum(leaf[:1].nbytes for leaf in of_rows)
        return self.most_pieces * one_piece + self.most_rows * one_row


def _zeros(size: int, like: np.ndarray) -> np.ndarray:
    return np.zeros((size, *like.shape[1:]), like.dtype)


def _put(at: int, whole: np.ndarray, part: np.ndarray) -> None:
    whole[at : at + len(part)] = part


def hold(
    store: EncodedStore,
    labelled: Source,
    transfer: Source,
    teacher: Streams | None,
    mesh: Mesh,
    *,
    shards: int,
    widest: int,
    limit: int | None = None,
) -> Resident | None:
    """Place all rows of both texts on the devices, or none if a device's part exceeds ``limit``.

    ``limit`` is in bytes (None: whatever it takes); ``widest`` is the width of the widest bucket.
    The host holds one device's part at a time.
    """
    filling = _Filling.of(store, (labelled, transfer), teacher, shards, widest)
    of_device = filling.bytes_per_shard() * shards // mesh.shape["data"]
    if limit is not None and of_device > limit:
        return None
    sharding = batch_sharding(mesh)
    parts: dict[tuple[int, int], list[jax.Device]] = {}
    for device, (part,) in sharding.addressable_devices_indices_map((shards,)).items():
        parts.setdefault(part.indices(shards)[:2], []).append(device)
    placed = []
    for part, devices in parts.items():
        own = jax.tree.map(lambda *leaves: np.stack(leaves), *map(filling.shard, range(*part)))
        placed += [jax.block_until_ready(jax.device_put(own, device)) for device in devices]
    held = jax.tree.map(
        lambda *leaves: jax.make_array_from_single_device_arrays(
            (shards, *leaves[0].shape[1:]), sharding, leaves
        ),
        *placed,
    )
    slots = (np.zeros(store.rows, np.int32), np.zeros(store.rows, np.int32))
    first = np.ones(shards, np.int64)
    for own, source in zip(slots, (labelled, transfer), strict=True):
        number = np.arange(len(source.rows))
        own[source.rows] = first[number % shards] + number // shards
        first += np.bincount(number % shards, minlength=shards)
    return Resident(held, filling.layout, slots, mesh)


def room(mesh: Mesh) -> int:
    """How many bytes text and targets may take on each device of this process; 0 on a CPU."""
    return int(_SHARE * device_memory(mesh))
