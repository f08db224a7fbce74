"""A plan, run in a folder: data placed, checkpoints, metrics.jsonl and TensorBoard around it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from xdistil_jax import hosts
from xdistil_jax.data.batches import Buckets, Source, choose_widths, language_rates, mix
from xdistil_jax.data.encode import EncodedStore
from xdistil_jax.distill.checkpoint import Checkpoints
from xdistil_jax.distill.evaluate import HeldOut, tagged_set
from xdistil_jax.distill.filling import hold, room
from xdistil_jax.distill.loop import PlanResult, Training, Writer, run_plan
from xdistil_jax.distill.masking import Masking
from xdistil_jax.distill.resident import Resident
from xdistil_jax.distill.stages import Stage
from xdistil_jax.distill.state import Model
from xdistil_jax.labels import Labels
from xdistil_jax.models.functional import Spec
from xdistil_jax.report.writers import JsonLines, TensorBoard, Writers
from xdistil_jax.session import Session
from xdistil_jax.sharding import replicate
from xdistil_jax.teacher.source import Teacher
from xdistil_jax.types import Params


class Peers(NamedTuple):
    """Plans that are to share every compiled program: their batches get the form that fits all.

    The rows on which each is trained, of one store, and what decides when each stops.
    """

    labelled: tuple[Int[np.ndarray, "N"], ...]
    devs: tuple[EncodedStore, ...]


def train_plan(
    session: Session, folder: Path, spec: Spec, params: Params, stages: tuple[Stage, ...],
    store: EncodedStore, dev: EncodedStore | None, tagset: Labels | None, *, labelled: np.ndarray,
    budget: int, seed: int, transfer: np.ndarray | None = None, teacher: Teacher | None = None,
    split_over: Mesh | None = None, masking: Masking | None = None, peers: Peers | None = None,
) -> PlanResult:  # fmt: skip
    """Run a plan in ``folder``, with checkpoints, metrics.jsonl and TensorBoard.

    ``split_over`` is the mesh over which the parameters are split; without it they are whole on
    every device of the session. With ``masking`` transfer text is its own teacher. Without ``dev``
    there is no dev F1. ``peers`` are all plans, this one among them, that are to share programs;
    they learn from labels alone.
    """
    run_, mesh = session.experiment.run, split_over or session.mesh
    steps = run_.steps_per_call
    peers = peers or Peers((), () if dev is None else (dev,))
    lengths = np.concatenate([store.lengths, *(peer.lengths for peer in peers.devs)])
    widths = choose_widths(lengths, run_.buckets)
    buckets = Buckets(widths, budget, run_.shards)
    if transfer is None or (teacher is None and masking is None):
        transfer = np.zeros(0, np.int64)
    held_out, transfer = _hold_out(transfer, store.sentence[transfer], run_.held_out, seed)
    checkpoints = Checkpoints(
        folder / "checkpoints", every=run_.save_every_s, keep=run_.keep_checkpoints,
        logs=(folder / "metrics.jsonl", folder / "tensorboard"),
    )  # fmt: skip
    saved = checkpoints.peek() or {"records": 0, "global_step": 0}
    writer = Writers(_writers(folder, session, saved) if hosts.is_primary() else ())
    sources = [_source(store, rows, run_.temperature) for rows in (labelled, transfer)]
    lookup = None if teacher is None else teacher.lookup
    resident = _held(session, store, sources, teacher, mesh, buckets)
    tagged = None
    if dev is not None and tagset is not None:
        tagged = tagged_set(
            dev, buckets, tagset, mesh, steps=steps, decoding=run_.decoding, peers=peers.devs
        )
    training = Training(
        Model(spec, lookup, session.dtype, mesh, split_over is not None, masking), store, *sources,
        _capped(buckets, sources, [_source(store, rows, 1.0) for rows in peers.labelled]),
        tagged, teacher,
        () if teacher is None else replicate(teacher.arrays, mesh),
        HeldOut.of(store, held_out, buckets, teacher, mesh, steps=steps), seed, steps,
        checkpoints, writer, session.stop, resident,
    )  # fmt: skip
    session.stop.listening = True
    try:
        return run_plan(training, stages, params)
    finally:
        session.stop.listening = False
        try:
            writer.close()
        finally:
            checkpoints.close()


def _capped(buckets: Buckets, own: Sequence[Source], peers: Sequence[Source]) -> Buckets:
    """Batches no larger than this plan fills, or the largest of its peers."""
    forms = [buckets.capped(*own), *map(buckets.capped, peers)]
    columns = zip(*(form.most for form in forms), strict=True)
    return replace(buckets, most=tuple(max(column) for column in columns))


def _held(
    session: Session, store: EncodedStore, sources: Sequence[Source], teacher: Teacher | None,
    mesh: Mesh, buckets: Buckets,
) -> Resident | None:  # fmt: skip
    """Text and targets on the devices, where the experiment wants them there, or they fit.

    Raises:
        ValueError: if they are wanted there and can't be.
    """
    placement = session.experiment.run.placement
    limit = None if placement == "resident" else hosts.primarys(room(mesh))
    if placement == "streamed" or limit == 0:
        return None
    held = hold(
        store, *sources, teacher, mesh,
        shards=buckets.shards, widest=buckets.widths[-1], limit=limit,
    )  # fmt: skip
    if held is None and placement == "resident":
        raise ValueError(
            f"run.placement is resident, but one of the {buckets.shards} shards of the text has "
            "more numbers than 32 bits count: set run.shards to a multiple of it, or "
            "run.placement to streamed"
        )
    return held


def _writers(folder: Path, session: Session, saved: Mapping[str, int]) -> tuple[Writer, ...]:
    lines = JsonLines(folder / "metrics.jsonl", keep=saved["records"])
    board = TensorBoard(folder / "tensorboard", purge_step=saved["global_step"])
    shown = () if session.progress is None else (session.progress,)
    return (lines, board, *shown)


def _source(store: EncodedStore, rows: np.ndarray, temperature: float) -> Source:
    return Source(rows, store.lengths[rows], language_rates(store.language[rows], temperature))


def _hold_out(
    rows: Int[np.ndarray, "N"], sentence: Int[np.ndarray, "N"], count: int, seed: int
) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "K"]]:
    """(held out, the rest): about ``count`` rows drawn by ``seed``, at most a tenth.

    Windows of one sentence stay together.
    """
    count = min(count, len(rows) // 10)
    if not count:
        return rows[:0], rows
    keys = mix(seed, 0x4E1D, sentence)
    out = keys <= np.partition(keys, count - 1)[count - 1]
    return rows[out], rows[~out]
