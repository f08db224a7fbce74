"""Meshes and placement: one code path from a laptop's single device to a pod.

A mesh is always there, with the axes ``data`` and ``model``; on a laptop it has one device.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

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


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Rows over ``data``; ``leading`` axes before them (steps of one call) are not split."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, "data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Place every leaf of ``tree`` whole on every device of ``mesh``."""
    return jax.device_put(tree, replicated(mesh))


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
        return leaf if there else jax.device_put(leaf, replicated(mesh))

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
        return jax.block_until_ready(jax.device_put(leaf, NamedSharding(mesh, spec)))

    return place


def place_batch(tree: PyTree, mesh: Mesh, *, leading: int = 0) -> PyTree:
    """Host arrays -> global arrays whose rows are split over ``data``.

    Every process passes the rows of its own devices; on one process that is all of them.
    """
    sharding = batch_sharding(mesh, leading=leading)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )


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
