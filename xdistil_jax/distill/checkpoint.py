"""Orbax checkpoints of a plan: stage, state, stop state, best parameters.

A position in the data is (seed, stage, step), so nothing else need be saved to go on. What is saved
is fetched at once and written in the background; a checkpoint has its name when it is whole.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from xdistil_jax import files, hosts, storage, trees
from xdistil_jax.distill.state import TrainState, merged
from xdistil_jax.sharding import fetched, is_spread
from xdistil_jax.types import Params


class CheckpointError(RuntimeError):
    """A checkpoint that can't be read or written, or that doesn't hold what was written."""


class Saved(NamedTuple):
    """A point between two calls. ``host`` is what the loop keeps in Python numbers (JSON)."""

    stage: int
    state: TrainState
    best: Params
    host: dict[str, Any]


class Checkpoints:
    """The last ``keep`` checkpoints of a run. ``every`` seconds pass between saves that aren't due.

    Saving is a no-op when ``folder`` is None. Where that lies in the mirror of a bucket, each is
    waited for and uploaded, after the ``logs`` (files and folders).
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        *,
        every: float = 60.0,
        keep: int = 2,
        logs: Sequence[pathlib.Path] = (),
    ) -> None:
        if keep < 1:
            raise ValueError(f"run.keep_checkpoints is {keep}: a run goes on from the last of them")
        self.every, self._keep, self._logs, self._folder = every, keep, logs, folder
        self._mirrored = folder is not None and storage.is_mirrored(folder)
        # The mirrors of a bucket lie apart, each on its host: there one process saves alone.
        self._apart = self._mirrored and hosts.several()
        self._last = time.monotonic()
        self._manager = None
        self._number = 0
        if folder is not None:
            with hosts.primary_first():
                storage.settle_newest(folder, keep=keep)
                _drop_older(folder, keep)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                # Where a folder can't be made, those who fill it would wait minutes for it.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            )
            if self._apart:
                folder.mkdir(parents=True, exist_ok=True)
                options = dataclasses.replace(options, **_alone())
            self._manager = ocp.CheckpointManager(folder.resolve(), options=options)
            if self._apart:
                self._refuse_other()
            self._number = self._manager.latest_step() or 0

    def due(self) -> bool:
        """Has it been long enough since the last save?"""
        return self._manager is not None and time.monotonic() - self._last >= self.every

    def save(self, saved: Saved) -> None:
        """Fetch ``saved`` and begin to write it; whatever then becomes of it on the devices.

        The oldest checkpoint goes once the new one is whole.

        Raises:
            CheckpointError, files.DiskFullError: if this or the save before has failed.
        """
        if self._manager is None:
            return
        # Fetched once, for the digest and for the file. The next step is given these buffers, but
        # Orbax has copied what it is handed before it returns. Not so the numbers in JSON, which it
        # writes out later: those are copied here.
        arrays = _arrays(saved)
        if self._apart or not any(map(is_spread, jax.tree.leaves(arrays))):
            arrays = jax.tree.map(fetched, arrays)
        host = {**saved.host, "stage": saved.stage, "digest": _digest(arrays)}
        host = json.loads(json.dumps({**host, "seal": _seal(host)}))
        self._number += 1
        self._last = time.monotonic()
        if self._apart and not hosts.is_primary():
            return
        with self._complaining():
            self._manager.save(
                self._number,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(host)
                ),
                force=True,
            )
        if self._mirrored:
            # What outlives this machine is the copy in the bucket.
            self.wait()
            self._upload()

    def wait(self) -> None:
        """Return when what was saved is on the disk.

        Raises:
            CheckpointError, files.DiskFullError: if it could not be written, saying why.
        """
        if self._manager is not None:
            with self._complaining():
                self._manager.wait_until_finished()

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        try:
            with files.naming_full_disk(self._manager.directory):
                yield
        except files.DiskFullError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{self._manager.directory}: a checkpoint could not be written: {error}. Those "
                "before it are whole: put that right and repeat the command to go on from there"
            ) from error

    def peek(self) -> dict[str, Any] | None:
        """The host part of the latest checkpoint: which stage, and how far; None without one."""
        self.wait()
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
        """Wait for what is being written, and release the manager's threads.

        Raises:
            CheckpointError: see ``wait``.
        """
        if self._manager is not None:
            try:
                self.wait()
            finally:
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
            storage.settle_newest(self._folder, keep=self._keep)

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


def _drop_older(folder: pathlib.Path, keep: int) -> None:
    """Remove all but the newest ``keep``: a run killed once the newest was whole left one more."""
    numbers = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
    for number in numbers[:-keep]:
        shutil.rmtree(folder / str(number))


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
        found.update(np.ascontiguousarray(fetched(leaf)))
    return found.hexdigest()
