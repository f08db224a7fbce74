"""Orbax checkpoints of a plan: stage, state, stop state, best parameters.

A position in the data is (seed, stage, step), so nothing else need be saved to go on.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from xdistil_jax import hosts, storage, trees
from xdistil_jax.distill.step import TrainState, merged
from xdistil_jax.types import Params


class CheckpointError(RuntimeError):
    """A checkpoint that can't be read, or that doesn't hold what was written."""


class Saved(NamedTuple):
    """A point between two calls. ``host`` is what the loop keeps in Python numbers (JSON)."""

    stage: int
    state: TrainState
    best: Params
    host: dict[str, Any]


class Checkpoints:
    """The last two checkpoints of a run. ``every`` seconds pass between saves that aren't due.

    Saving is a no-op when ``folder`` is None. Where that lies in the mirror of a bucket, the newest
    one that is finished is uploaded with each save, after the ``logs`` (files and folders).
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        *,
        every: float = 60.0,
        logs: Sequence[pathlib.Path] = (),
    ) -> None:
        self.every, self._logs, self._folder = every, logs, folder
        # The mirrors of a bucket lie apart, each on its host: there one process saves alone.
        self._apart = (
            folder is not None and hosts.several() and storage.Mirror.of(folder) is not None
        )
        self._last = time.monotonic()
        self._manager = None
        if folder is not None:
            with hosts.primary_first():
                storage.settle_newest(folder, keep=2)
            options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
            if self._apart:
                folder.mkdir(parents=True, exist_ok=True)
                options = dataclasses.replace(options, **_alone())
            self._manager = ocp.CheckpointManager(folder.resolve(), options=options)
            if self._apart:
                self._refuse_other()

    def due(self) -> bool:
        """Has it been long enough since the last save?"""
        return self._manager is not None and time.monotonic() - self._last >= self.every

    def save(self, saved: Saved) -> None:
        """Write atomically; the older of the two checkpoints goes once the new one is whole."""
        if self._manager is None or (self._apart and not hosts.is_primary()):
            return
        arrays = _arrays(saved)
        if self._apart:
            arrays = jax.tree.map(np.asarray, arrays)
        host = {**saved.host, "stage": saved.stage, "digest": _digest(arrays)}
        host["seal"] = _seal(host)
        number = (self._manager.latest_step() or 0) + 1
        self._manager.save(
            number,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(host)
            ),
        )
        self._upload()
        self._last = time.monotonic()

    def peek(self) -> dict[str, Any] | None:
        """The host part of the latest checkpoint: which stage, and how far; None without one."""
        if self._manager is None or self._manager.latest_step() is None:
            return None
        return self._restore()["host"]

    def load(self, like: TrainState) -> Saved:
        """The latest checkpoint, in the structure and on the devices of ``like``.

        Raises:
            CheckpointError: if it is damaged, naming its folder.
        """
        template = _arrays(Saved(0, like, like.trainable, {}))
        restored = self._restore(arrays=ocp.args.StandardRestore(template))
        arrays, host = restored["arrays"], restored["host"]
        if _digest(arrays) != host["digest"]:
            raise CheckpointError(self._complaint("its content is not what was written"))
        chosen = trees.mask(arrays["params"], [path for path, _ in trees.leaves(like.trainable)])
        trainable, frozen = trees.partition(arrays["params"], chosen)
        leaves, structure = jax.tree.flatten(like.opt_state)
        moments = [arrays["moments"][str(i)] for i in range(len(leaves))]
        state = TrainState(
            trainable,
            frozen,
            jax.tree.unflatten(structure, moments),
            arrays["step"],
            jax.random.wrap_key_data(arrays["key"]),
        )
        return Saved(host["stage"], state, trees.combine(arrays["best"], _holes(frozen)), host)

    def close(self) -> None:
        """Release the manager's threads."""
        if self._manager is not None:
            self._manager.close()
            self._upload()

    def _refuse_other(self) -> None:
        """Hosts apart could each begin at a checkpoint of their own, and would wait for ever."""
        own = self._manager.latest_step()
        if (newest := hosts.primarys(own)) != own:
            raise CheckpointError(
                f"{self._folder} goes up to checkpoint {own}, on the first host to {newest}: "
                "delete that folder, here only, and repeat the command"
            )

    def _upload(self) -> None:
        if hosts.is_primary():
            # First the logs: none of a checkpoint's lines may be lacking.
            storage.push_logs(*self._logs)
            storage.settle_newest(self._folder, keep=2)

    def _restore(self, **args: ocp.args.CheckpointArgs) -> Mapping[str, Any]:
        args = ocp.args.Composite(host=ocp.args.JsonRestore(), **args)
        try:
            restored = self._manager.restore(self._manager.latest_step(), args=args)
        except Exception as error:
            raise CheckpointError(self._complaint(error)) from error
        host = restored["host"]
        seal = host.pop("seal", None)
        if seal is not None and seal != _seal(host):
            raise CheckpointError(self._complaint("its position is not what was written"))
        return restored

    def _complaint(self, error: object) -> str:
        path = pathlib.Path(self._manager.directory, str(self._manager.latest_step()))
        url = storage.shown(path)
        there = "" if url == str(path) else f" and {url}"
        return (
            f"checkpoint {path} is damaged or of another run: {error}. Delete that folder{there} "
            "to go on from the one before, or the whole run folder to start again"
        )


def _alone() -> dict[str, Any]:
    """Options of a manager that waits for no other process."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    return {"create": False, "multiprocessing_options": options}


def _holes(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _holes(v) if isinstance(v, Mapping) else None for k, v in tree.items()}


def _arrays(saved: Saved) -> dict[str, PyTree]:
    moments = jax.tree.leaves(saved.state.opt_state)
    return {
        "params": merged(saved.state),
        "best": trees.unflatten(dict(trees.leaves(saved.best))),
        "moments": {str(i): leaf for i, leaf in enumerate(moments)},
        "step": saved.state.step,
        "key": jax.random.key_data(saved.state.key),
    }


def _seal(host: Mapping[str, Any]) -> str:
    text = json.dumps(host, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest(arrays: Mapping[str, PyTree]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for path, leaf in trees.leaves(arrays):
        found.update(path.encode())
        found.update(np.ascontiguousarray(leaf))
    return found.hexdigest()
