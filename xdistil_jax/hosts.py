"""Several processes as one run: joining them, and what only one of them may do or decide.

The run folder lies where all of them see it, or in a bucket. With one process everything here
does nothing.
"""

import importlib.util
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

# Text is encoded by one process while the others wait.
_PATIENCE_MS = 24 * 3600 * 1000
Value = TypeVar("Value")
_barriers = itertools.count()


def connect(*, heartbeat_seconds: int = 100) -> None:
    """Join the other processes of this run, if there are any, before JAX computes anything.

    They are found by ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``
    (``xdistil launch`` sets them), or from what a TPU pod, Slurm or Open MPI says of itself. A
    process that is silent for ``heartbeat_seconds`` counts as dead, and the others end.

    Raises:
        ValueError: if only some of the three variables are set.
    """
    if jax.distributed.is_initialized():
        return
    known = _given()
    if known or _in_cluster():
        # It would take SIGTERM away from us, and Orbax asks it with numbers of its own.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(**known, heartbeat_timeout_seconds=heartbeat_seconds)


def _given() -> dict[str, Any]:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    values = [os.environ.get(name) for name in names]
    if not any(values[1:]):
        return {}
    if not all(values):
        absent = ", ".join(name for name, value in zip(names, values, strict=True) if not value)
        raise ValueError(f"to run in several processes set {', '.join(names)}; not set: {absent}")
    address, count, number = values
    return {
        "coordinator_address": address,
        "num_processes": int(count or 0),
        "process_id": int(number or 0),
    }


def _in_cluster() -> bool:
    """Does a scheduler say that this is one of several processes, or is this a TPU VM?"""
    if "SLURM_PROCID" in os.environ:
        return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return int(os.environ["OMPI_COMM_WORLD_SIZE"]) > 1
    if os.environ.get("JAX_PLATFORMS", "tpu") != "tpu":
        return False
    chips = (*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/*"))
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def several() -> bool:
    """Is this run more than one process?"""
    return jax.process_count() > 1


def is_primary() -> bool:
    """Is this the one process that writes what a run has once: reports, checkpoints, bundles?"""
    return jax.process_index() == 0


def barrier() -> None:
    """Wait until every process is here; costs the devices nothing."""
    if several():
        # Collectives of the devices give up after seconds.
        from orbax.checkpoint import multihost

        wait = multihost.get_barrier_sync_fn()
        wait(key=f"xdistil-{next(_barriers)}", timeout_ms=_PATIENCE_MS)


def acquaint(mesh: Mesh) -> None:
    """Connect the devices of ``mesh`` across processes, along each axis and along all of them.

    On CPUs the first collective of a group of devices does so, and gives up where a process comes
    30 seconds after another, because it compiles longer, say. Later ones wait for half an hour.
    """
    if not several():
        return
    names = mesh.axis_names
    spec = PartitionSpec(names)

    def totals(ones: Float[Array, "1"]) -> list[Float[Array, "1"]]:
        return [jax.lax.psum(ones, axes) for axes in (*names, names)]

    one = np.ones(1, np.float32)
    ones = jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, spec), lambda index: one)
    met = jax.jit(jax.shard_map(totals, mesh=mesh, in_specs=spec, out_specs=spec))
    barrier()
    jax.block_until_ready(met(ones))


@contextmanager
def primary_first() -> Iterator[None]:
    """The block runs in the primary process, and then, finding what that has made, in the others.

    Where it fails in the primary process the others are ended by its death.
    """
    if not is_primary():
        barrier()
    yield
    if is_primary():
        barrier()


def once(work: Callable[[], None]) -> None:
    """Do ``work`` in the primary process; the others go on when it is done."""
    if is_primary():
        work()
    barrier()


def share(items: Sequence[Value]) -> Sequence[Value]:
    """This process's part of ``items``: every P-th."""
    return items[jax.process_index() :: jax.process_count()]


def primarys(value: Value) -> Value:
    """The primary process's ``value`` (JSON types): what all must agree on is decided by one."""
    if not several():
        return value
    from jax.experimental import multihost_utils

    barrier()
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(size, np.uint8)
    padded[: len(content)] = content[:size]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def from_primary(tree: PyTree) -> PyTree:
    """The primary process's arrays, on the host: hosts may differ in the last bit of an SVD."""
    if not several():
        return tree
    from jax.experimental import multihost_utils

    barrier()
    # Leaf by leaf: each is whole on every device for a moment, and a large teacher never.
    return jax.tree.map(lambda leaf: multihost_utils.broadcast_one_to_all(np.asarray(leaf)), tree)
