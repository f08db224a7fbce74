"""Filling the devices with what ``resident`` gathers from: which rows, in which shard, where."""

import math
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from xdistil_jax.data.batches import Source
from xdistil_jax.data.encode import EncodedStore, pieces
from xdistil_jax.distill.feed import Streams, refuse_devices
from xdistil_jax.distill.resident import Held, Layout, Resident, Shard
from xdistil_jax.sharding import batch_sharding, device_memory

# Of a device's memory; the rest is for parameters, moments and activations.
_SHARE = 0.5
# Rows that the teacher is asked for at once.
_CHUNK = 1024


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

    def shard(self, number: int) -> Shard:
        """One shard, filled up with nothing."""
        rows = self.by_shard[number]
        of_pieces, of_rows = self.chunk(np.array([-1]))
        whole = (
            jax.tree.map(partial(_zeros, self.most_pieces), of_pieces),
            [np.repeat(leaf, self.most_rows, axis=0) for leaf in of_rows],
        )
        length = np.zeros(self.most_rows, np.int32)
        length[1 : len(rows) + 1] = self.store.lengths[rows]
        start = (np.cumsum(length) - length).astype(np.int32)
        for row in range(0, len(rows), _CHUNK):
            said = self.chunk(rows[row : row + _CHUNK])
            for at, leaves, part in zip((start[row + 1], row + 1), whole, said, strict=True):
                jax.tree.map(partial(_put, at), leaves, part)
        return Shard(jax.tree.map(np.ravel, whole[0]), whole[1], start, length)

    @property
    def bytes_per_shard(self) -> int:
        """Of what a device holds of one shard."""
        of_pieces, of_rows = self.chunk(self.by_shard[0][:1])
        one_piece = sum(leaf[:1].nbytes for leaf in jax.tree.leaves(of_pieces))
        one_row = 8 + sum(leaf[:1].nbytes for leaf in of_rows)
        return self.most_pieces * one_piece + self.most_rows * one_row

    @property
    def can_be_numbered(self) -> bool:
        """Do 32 bits suffice for the place of every number in its leaf?"""
        return self.most_pieces * max([1, *map(math.prod, self.layout.shapes)]) < 1 << 31


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
    None are placed, either, of shards with more numbers than 32 bits count. The host holds one
    shard at a time.

    Raises:
        ValueError: if the mesh's data axis doesn't divide the logical shards.
    """
    refuse_devices(shards, mesh)
    filling = _Filling.of(store, (labelled, transfer), teacher, shards, widest)
    own = shards // mesh.shape["data"]
    fits = filling.bytes_per_shard * own <= (math.inf if limit is None else limit)
    if not (fits and filling.can_be_numbered):
        return None
    held = _laid(filling, mesh, own)
    slots = (np.zeros(store.rows, np.int32), np.zeros(store.rows, np.int32))
    first = np.ones(shards, np.int64)
    for own, source in zip(slots, (labelled, transfer), strict=True):
        number = np.arange(len(source.rows))
        own[source.rows] = first[number % shards] + number // shards
        first += np.bincount(number % shards, minlength=shards)
    return Resident(held, filling.layout, slots, mesh)


def _laid(filling: _Filling, mesh: Mesh, own: int) -> Held:
    """``own`` shards on each device."""
    sharding, shards = batch_sharding(mesh), len(filling.by_shard)
    places = sharding.addressable_devices_indices_map((shards,)).items()

    def across(*leaves: Array) -> Array:
        shape = (mesh.shape["data"] * leaves[0].shape[0], *leaves[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, leaves)

    first: dict[int, list[jax.Device]] = {}
    for device, (part,) in places:
        first.setdefault(part.indices(shards)[0], []).append(device)
    held = []
    for number in range(own):
        placed = []
        for start, devices in first.items():
            made = filling.shard(start + number)
            placed += [jax.block_until_ready(jax.device_put(made, each)) for each in devices]
        held.append(jax.tree.map(across, *placed))
    return tuple(held)


def room(mesh: Mesh) -> int:
    """How many bytes text and targets may take on each device of this process; 0 on a CPU."""
    return int(_SHARE * device_memory(mesh))
