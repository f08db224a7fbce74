"""Meshes and placement: one code path from a laptop's single device to a pod.

A mesh is always there, with the axes ``data`` and ``model``; on a laptop it has one device.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from xdistil_jax import trees


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """A mesh (data, model) over ``devices`` (all by default).

    Raises:
        ValueError: if the devices don't divide into the model axis.
    """
    devices = list(jax.devices() if devices is None else devices)
    data, rest = divmod(len(devices), model)
    if rest:
        raise ValueError(f"{len(devices)} devices do not divide into a model axis of {model}")
    # jax.make_mesh defaults to Explicit axes, which would put sharding into every type.
    return jax.make_mesh(
        (data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def platform(mesh: Mesh) -> str:
    """``cpu``, ``gpu`` or ``tpu``."""
    return mesh.devices.flat[0].platform


def device_memory(mesh: Mesh) -> int:
    """Bytes of memory of each device; 0 where the platform doesn't say, as on a CPU."""
    mine = [each for each in mesh.devices.flat if each.process_index == jax.process_index()]
    return min((each.memory_stats() or {}).get("bytes_limit", 0) for each in mine)


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Rows over ``data``; ``leading`` axes before them (steps of one call) are not split."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, "data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Place every leaf of ``tree`` whole on every device of ``mesh``.

    Every process passes the same values.
    """
    return lay(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def lay(tree: PyTree, shardings: PyTree) -> PyTree:
    """Place every leaf of ``tree``, the same in every process, by the sharding beside it."""
    if all(each.is_fully_addressable for each in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)
    return jax.tree.map(_place, tree, shardings)


def _place(leaf: Any, sharding: NamedSharding) -> Array:
    """A leaf that each process holds whole, or that lies on all devices already."""
    placed = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if placed or sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(leaf), sharding))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def is_split(tree: PyTree) -> bool:
    """Does a device hold only a part of any leaf?"""
    return any(
        isinstance(leaf, jax.Array) and not leaf.sharding.is_fully_replicated
        for leaf in jax.tree.leaves(tree)
    )


def settle(tree: PyTree, mesh: Mesh) -> PyTree:
    """``tree`` on ``mesh``: what lies there stays as it is split, other leaves are replicated."""

    def place(leaf: Any) -> Array:
        own = leaf.sharding if isinstance(leaf, jax.Array) else None
        there = isinstance(own, NamedSharding) and own.mesh == mesh
        return leaf if there else _place(leaf, replicated(mesh))

    return jax.tree.map(place, tree)


def placer(
    mesh: Mesh, rules: Mapping[str, PartitionSpec] | None = None
) -> Callable[[str, np.ndarray], Array]:
    """(path of a leaf, the leaf) -> the leaf on the devices, for whoever makes one at a time.

    By ``rules`` (pattern -> spec), of which exactly one must cover each path; without them every
    device holds the whole leaf.
    """

    def place(path: str, leaf: np.ndarray) -> Array:
        spec = PartitionSpec() if rules is None else rules[trees.covering(path, tuple(rules))]
        # Waits, so that the host's leaf can go before the next one is made.
        return jax.block_until_ready(_place(leaf, NamedSharding(mesh, spec)))

    return place


def place_batch(tree: PyTree, mesh: Mesh, *, leading: int = 0) -> PyTree:
    """Host arrays -> global arrays whose rows are split over ``data``.

    Every process passes the rows of its own devices (``own_rows``).
    """
    sharding = batch_sharding(mesh, leading=leading)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )


def own_rows(mesh: Mesh, rows: int) -> Int[np.ndarray, "b"]:
    """Which of ``rows`` rows, split over ``data``, lie on this process's devices."""
    places = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    parts = sorted({part.indices(rows)[:2] for (part,) in places})
    return np.concatenate([np.arange(*part) for part in parts])


def anywhere(flag: bool, mesh: Mesh) -> Array:
    """How many devices of ``data`` belong to processes that raise ``flag``; not waited for."""
    flags = np.full(len(own_rows(mesh, mesh.shape["data"])), flag, np.int32)
    return _total(mesh)(place_batch(flags, mesh))


@lru_cache(maxsize=8)
def _total(mesh: Mesh) -> Callable[[Array], Array]:
    return jax.jit(jnp.sum, out_shardings=replicated(mesh))


def own_mesh(mesh: Mesh) -> Mesh:
    """The part of ``mesh`` that belongs to this process: a mesh of its own."""
    if batch_sharding(mesh).is_fully_addressable:
        return mesh
    mine = [each for each in mesh.devices.flat if each.process_index == jax.process_index()]
    return make_mesh(mine, model=mesh.shape["model"])


def own_copy(tree: PyTree, mesh: Mesh) -> PyTree:
    """``settle``, and of what lies whole on the devices of all processes the part on ``mesh``."""
    sharding = replicated(mesh)

    def own(leaf: Any) -> Array:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return settle(leaf, mesh)
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)

    return jax.tree.map(own, tree)


def by_rules(
    params: Mapping[str, Any], rules: Mapping[str, PartitionSpec], mesh: Mesh
) -> dict[str, Any]:
    """A tree of shardings from rules (pattern -> spec) that cover every parameter exactly once.

    Raises:
        trees.PatternError: see ``trees.assign``.
    """
    covered = trees.assign(params, tuple(rules))
    return trees.unflatten(
        {path: NamedSharding(mesh, rules[pattern]) for path, pattern in covered.items()}
    )
