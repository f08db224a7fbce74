"""Rows -> batches on the devices: gathering, masks, and what the teacher says of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int, PyTree

from xdistil_jax.data.batches import SHARDS, Buckets, Call
from xdistil_jax.data.encode import EncodedStore, pieces
from xdistil_jax.distill.step import Feed
from xdistil_jax.sharding import place_batch, replicate
from xdistil_jax.types import Batch


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
    labels = np.where(first, store.labels[index], -1).astype(np.int32)
    role = labelled[None, :, None]
    return Batch(
        rows=rows.astype(np.int32),
        tokens=np.where(real, store.tokens[index], 0).astype(np.int32),
        lengths=real.sum(-1, dtype=np.int32),
        word_start=first,
        labels=labels,
        label_mask=role & (labels >= 0),
        repr_mask=~role & (first if words_only else real),
        logit_mask=~role & first,
    )


def mesh_buckets(widths: Sequence[int], token_budget: int, mesh: Mesh) -> Buckets:
    """Buckets whose batches hold equal shares of the logical shards and of the devices.

    Any number of devices that divides 16 sees the same batches; more see larger ones.
    """
    return Buckets(tuple(widths), token_budget, math.lcm(SHARDS, mesh.shape["data"]))


class Feeder(NamedTuple):
    """Turns calls into feeds of a fixed number of steps, placed on the mesh."""

    store: EncodedStore
    buckets: Buckets
    teacher: Streams | None
    mesh: Mesh
    steps: int

    def filled(self, call: Call) -> Int[np.ndarray, "K B"]:
        """The rows of ``call``, filled up with -1 to the fixed number of steps."""
        rows = np.full((self.steps, call.rows.shape[1]), -1, np.int64)
        rows[: len(call.rows)] = call.rows
        return rows

    def feed(self, call: Call, labelled: Bool[np.ndarray, "B"]) -> tuple[Feed, int]:
        """(the call's batches on the devices, filled up to ``steps``; its real pieces).

        Raises:
            ValueError: if the mesh's data axis doesn't divide the rows of the batch.
        """
        if call.rows.shape[1] % self.mesh.shape["data"]:
            raise ValueError(
                f"a batch of {call.rows.shape[1]} rows can't be split evenly over a data axis of "
                f"{self.mesh.shape['data']} devices: make the buckets with mesh_buckets"
            )
        width = self.buckets.widths[call.bucket]
        rows = self.filled(call)
        words_only = self.teacher is not None and self.teacher.words_only
        batch = collate(self.store, rows, width, labelled, words_only=words_only)
        streamed = () if self.teacher is None else self.teacher.stream(rows, width)
        count = replicate(jnp.asarray(len(call.rows), jnp.int32), self.mesh)
        feed = Feed(*place_batch((batch, streamed), self.mesh, leading=1), count)
        return feed, int(batch.lengths.sum())
