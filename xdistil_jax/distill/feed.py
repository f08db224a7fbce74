"""Rows -> batches on the devices: gathering, masks, and what the teacher says of them."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree

from xdistil_jax.data.batches import Buckets, Call
from xdistil_jax.data.encode import EncodedStore, pieces
from xdistil_jax.distill.step import Feed
from xdistil_jax.sharding import own_rows, place_batch, replicate
from xdistil_jax.types import Batch

if TYPE_CHECKING:
    from xdistil_jax.distill.resident import Resident


class Streams(Protocol):
    """The part of a teacher that travels with the batch (see ``teacher.source.Teacher``)."""

    @property
    def words_only(self) -> bool: ...
    def stream(self, rows: Int[np.ndarray, "K B"], width: int) -> PyTree: ...


def collate(
    store: EncodedStore,
    rows: Int[np.ndarray, "K B"],
    width: int,
    labelled: Bool[np.ndarray, "B"],
    *,
    words_only: bool = False,
) -> Batch:
    """Gather ``rows`` (-1: empty) into a Batch of NumPy arrays [K, B, T] and [K, B].

    Where ``labelled`` holds, a row counts for cross-entropy; elsewhere for representations (every
    real piece, or, with ``words_only``, first ones) and logits (first pieces that the row owns).
    """
    index, real = pieces(store, rows, width)
    first = real & (store.word[index] >= 0) & store.owned[index]
    return masked_batch(
        rows.astype(np.int32),
        np.where(real, store.tokens[index], 0).astype(np.int32),
        real.sum(-1, dtype=np.int32),
        first,
        np.where(first, store.labels[index], -1).astype(np.int32),
        real,
        labelled[None, :, None],
        words_only=words_only,
    )


def masked_batch(
    rows: Int[Array | np.ndarray, "*K B"],
    tokens: Int[Array | np.ndarray, "*K B T"],
    lengths: Int[Array | np.ndarray, "*K B"],
    first: Bool[Array | np.ndarray, "*K B T"],
    labels: Int[Array | np.ndarray, "*K B T"],
    real: Bool[Array | np.ndarray, "*K B T"],
    role: Bool[Array | np.ndarray, "#K B 1"],
    *,
    words_only: bool,
) -> Batch:
    """A Batch with the mask of each loss, on the host or inside ``jit``; see ``collate``.

    ``first`` are the first pieces that their row owns; ``labels`` is -1 elsewhere. ``role`` is True
    for labelled rows.
    """
    return Batch(
        rows, tokens, lengths, first, labels,
        label_mask=role & (labels >= 0),
        repr_mask=~role & (first if words_only else real),
        logit_mask=~role & first,
    )  # fmt: skip


def refuse_devices(shards: int, mesh: Mesh) -> None:
    """Raise ValueError if the mesh's data axis doesn't divide the logical ``shards``."""
    if shards % (devices := mesh.shape["data"]):
        raise ValueError(
            f"a data axis of {devices} devices does not divide the {shards} logical shards: "
            f"use a number of devices that does, or set run.shards to a multiple of {devices}"
        )


class Feeder(NamedTuple):
    """Turns calls into feeds of a fixed number of steps, placed on the mesh."""

    store: EncodedStore
    buckets: Buckets
    teacher: Streams | None
    mesh: Mesh
    steps: int
    resident: "Resident | None" = None

    def filled(self, call: Call) -> Int[np.ndarray, "K B"]:
        """The rows of ``call``, filled up with -1 to the fixed number of steps."""
        rows = np.full((self.steps, call.rows.shape[1]), -1, np.int64)
        rows[: len(call.rows)] = call.rows
        return rows

    def feed(self, call: Call, labelled: Bool[np.ndarray, "B"]) -> tuple[Feed, int]:
        """(the call's batches on the devices, filled up to ``steps``; its real pieces).

        With ``resident`` only their places travel.

        Raises:
            ValueError: if the mesh's data axis doesn't divide the logical shards.
        """
        refuse_devices(self.buckets.shards, self.mesh)
        width = self.buckets.widths[call.bucket]
        rows = self.filled(call)
        own = own_rows(self.mesh, rows.shape[1])
        real = int(self.store.lengths[rows[rows >= 0]].sum())
        count = replicate(np.int32(len(call.rows)), self.mesh)
        if self.resident is not None:
            return Feed(*self.resident.gather(rows[:, own], width, labelled[own]), count), real
        words_only = self.teacher is not None and self.teacher.words_only
        batch = collate(self.store, rows[:, own], width, labelled[own], words_only=words_only)
        streamed = () if self.teacher is None else self.teacher.stream(rows[:, own], width)
        return Feed(*place_batch((batch, streamed), self.mesh, leading=1), count), real
