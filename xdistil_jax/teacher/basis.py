"""The subspace in which a PCA codec keeps states: fitted to a sample, sealed beside the shards."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from xdistil_jax.models.embeddings import svd_directions
from xdistil_jax.teacher.shards import CacheDamaged, Sealed, digest


class Basis(NamedTuple):
    """Mean and orthonormal directions (by falling energy) of a layer's states, fp32.

    On the host as NumPy arrays, inside ``jit`` as data.
    """

    mean: Float[Array | np.ndarray, "D"]
    directions: Float[Array | np.ndarray, "D r"]

    def project(self, states: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N r"]:
        """The coordinates of states."""
        return (states - self.mean[None]) @ self.directions

    def restore(
        self, coordinates: Float[Array | np.ndarray, "*B r"]
    ) -> Float[Array | np.ndarray, "*B D"]:
        """The states that have these coordinates, and nothing outside of the subspace."""
        mean = self.mean.reshape((1,) * (coordinates.ndim - 1) + (-1,))
        return coordinates @ self.directions.T + mean


class Bases(NamedTuple):
    """The basis of each layer, and a fingerprint of all; both empty without a PCA codec."""

    identity: str = ""
    by_layer: Mapping[str, Basis] = {}


def fit_basis(sample: Float[np.ndarray, "N D"], kept: int | float) -> Basis:
    """The principal directions of a sample: ``kept`` of them, or as many as hold that share (a
    float under 1) of its energy, the sum of squared distances from its mean.

    Raises:
        ValueError: if the sample has fewer than ``kept``.
    """
    mean = sample.mean(0, dtype=np.float64).astype(np.float32)
    centred = sample - mean[None]
    directions = svd_directions(centred, min(sample.shape))
    if isinstance(kept, float):
        energy = ((centred @ directions).astype(np.float64) ** 2).sum(0).cumsum()
        kept = int(np.searchsorted(energy, kept * energy[-1])) + 1
    if kept > directions.shape[1]:
        raise ValueError(
            f"{kept} coordinates are more than there are: the states are {sample.shape[1]} wide, "
            f"and the sample has {len(sample):,} of them. Ask for fewer"
        )
    return Basis(mean, np.ascontiguousarray(directions[:, :kept]))


def write_bases(folder: Path, bases: Mapping[str, Basis]) -> None:
    """Seal the basis of each layer in the cache's folder."""
    arrays = {
        f"{field}-{layer}": array
        for layer, basis in bases.items()
        for field, array in basis._asdict().items()
    }
    Sealed.write(_record(folder), arrays, {})


def has_bases(folder: Path) -> bool:
    """Is there a folder of bases, right or wrong?"""
    return _record(folder).parent.exists()


def read_bases(folder: Path, layers: Iterable[str]) -> Bases:
    """The bases in the cache's folder.

    Raises:
        CacheDamaged: naming a file of them. Without its basis nothing in the cache can be read, so
            all of it has to go.
    """
    try:
        sealed = Sealed.read(_record(folder))
        found = {
            layer: Basis(*(np.array(sealed.array(f"{field}-{layer}")) for field in Basis._fields))
            for layer in layers
        }
    except CacheDamaged as error:
        raise CacheDamaged(error.path, error.complaint, delete=folder) from None
    return Bases(digest(sealed.files), found)


def _record(folder: Path) -> Path:
    return folder / "basis" / "basis.json"
