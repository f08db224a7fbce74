"""The teacher's states, read from disk: rows are gathered on the host, decoded inside ``jit``."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree, Shaped

from xdistil_jax import storage
from xdistil_jax.models.layers import merge_columns
from xdistil_jax.teacher.basis import Bases, Basis, read_bases
from xdistil_jax.teacher.codec import find_codec
from xdistil_jax.teacher.manifest import CacheSettings, hidden_name, label
from xdistil_jax.teacher.shards import CacheDamaged, Ledger, locate
from xdistil_jax.types import Batch, EncoderOutput


@dataclass(frozen=True)
class CacheLookup:
    """Decodes what the cache has streamed; runs inside ``jit``.

    ``columns`` make up each of the data's tags, where the cache holds another set. With
    ``coordinates`` the states of a PCA codec stay coordinates in its basis.
    """

    layers: tuple[str, ...]
    codec: str
    columns: tuple[tuple[int, ...], ...] = ()
    coordinates: bool = False

    def __call__(
        self, arrays: Mapping[str, Basis], streamed: PyTree, batch: Batch
    ) -> EncoderOutput:
        codec = find_codec(self.codec)
        hidden = {layer: codec.numbers.decode(streamed["hidden"][layer]) for layer in self.layers}
        if codec.kept is not None and not self.coordinates:
            hidden = {layer: arrays[layer].restore(found) for layer, found in hidden.items()}
        logits = streamed["logits"].astype(jnp.float32)
        return EncoderOutput(hidden, merge_columns(logits, self.columns))


@dataclass(frozen=True, eq=False)
class TeacherCache:
    """A cache as seen from the rows of one store: all but a codec's basis is streamed.

    ``maps[name][k]`` is the memory map of the k-th shard in use. For each row of the store
    ``shard`` is its k (-1: the cache wasn't asked for it) and ``start`` its first token there.
    With ``coordinates`` the student imitates the coordinates in a PCA codec's basis; with
    ``words_only`` the states of first pieces, not of all: of a whole text that of [CLS].
    """

    folder: Path
    settings: CacheSettings
    maps: dict[str, list[Shaped[np.ndarray, "N W"]]]
    shard: Int[np.ndarray, "R"]
    start: Int[np.ndarray, "R"]
    length: Int[np.ndarray, "R"]
    bases: Bases = Bases()
    coordinates: bool = False
    words_only: bool = False

    @property
    def arrays(self) -> Mapping[str, Basis]:
        """The basis of each layer, where states are restored from coordinates."""
        return {} if self.coordinates else self.bases.by_layer

    @cached_property
    def lookup(self) -> CacheLookup:
        """The pure function that turns what was streamed into the teacher's output."""
        settings = self.settings
        return CacheLookup(settings.layers, settings.codec, coordinates=self.coordinates)

    @cached_property
    def rows(self) -> Int[np.ndarray, "N"]:
        """The rows of the store that may be streamed."""
        return np.flatnonzero(self.shard >= 0)

    def stream(self, rows: Int[np.ndarray, "*K B"], width: int) -> dict[str, Any]:
        """Gather rows -> ``{"hidden": {layer: encoded [*K B T W]}, "logits": fp16 [*K B T C]}``.

        Zeros on padding and for row -1.

        Raises:
            ValueError: naming the first row that isn't in the cache, or is longer than ``width``.
        """
        rows = np.asarray(rows)
        slots = np.flatnonzero(rows >= 0)
        wanted = rows.reshape(-1)[slots]
        length = self.length[wanted]
        self._refuse_strangers(wanted, width)
        places = list(
            zip(
                slots.tolist(),
                self.shard[wanted].tolist(),
                self.start[wanted].tolist(),
                (self.start[wanted] + length).tolist(),
                length.tolist(),
                strict=True,
            )
        )
        gathered = {}
        for name, maps in self.maps.items():
            out = np.zeros((rows.size, width, maps[0].shape[1]), maps[0].dtype)
            for slot, shard, start, stop, count in places:
                out[slot, :count] = maps[shard][start:stop]
            gathered[name] = out.reshape(*rows.shape, width, -1)
        streamed = find_codec(self.settings.codec).numbers.streamed
        hidden = {
            layer: gathered[hidden_name(layer)].view(streamed) for layer in self.settings.layers
        }
        return {"hidden": hidden, "logits": gathered["logits"]}

    def _refuse_strangers(self, wanted: Int[np.ndarray, "N"], width: int) -> None:
        if len(strangers := wanted[self.shard[wanted] < 0]):
            raise ValueError(
                f"row {strangers[0]} is not in {label(self.settings.id)}, which was asked for "
                f"{len(self.rows):,} of {len(self.shard):,} rows: pass it to build_cache(rows=...)"
            )
        if len(long := wanted[self.length[wanted] > width]):
            raise ValueError(
                f"row {long[0]} has {self.length[long[0]]} pieces: expected at most the batch's "
                f"width, {width}"
            )


def bind(
    ledger: Ledger,
    settings: CacheSettings,
    row_keys: Shaped[np.ndarray, "R"],
    rows: Int[np.ndarray, "N"],
) -> TeacherCache:
    """Verify and map the shards that hold ``rows`` of the store whose rows are ``row_keys``.

    Raises:
        CacheDamaged: naming a file of a shard or of the codec's basis.
    """
    place = locate(ledger.key, row_keys[rows])
    numbers, dense = np.unique(ledger.shard[place], return_inverse=True)
    shard = np.full(len(row_keys), -1, np.int32)
    start, length = np.zeros(len(row_keys), np.int64), np.zeros(len(row_keys), np.int32)
    shard[rows], start[rows], length[rows] = dense, ledger.start[place], ledger.length[place]
    names = [*(hidden_name(layer) for layer in settings.layers), "logits"]
    shards = [ledger.shards[number] for number in numbers.tolist()]
    bases = Bases()
    if shards and find_codec(settings.codec).kept is not None:
        bases = read_bases(ledger.folder, settings.layers)
    for sealed in shards:
        if sealed.facts.get("basis", "") != bases.identity:
            raise CacheDamaged(sealed.folder / "shard.json", "encoded with another basis")
    storage.fetch_files([sealed.folder / f"{name}.npy" for sealed in shards for name in names])
    # Checksums leave the interpreter's lock. np.load stays out of threads: in Python 3.11 its
    # literal_eval of the header fails there now and then.
    with ThreadPoolExecutor() as pool:
        for name in names:
            list(pool.map(lambda sealed, name=name: sealed.verify(name), shards))
    maps = {name: [sealed.map(name) for sealed in shards] for name in names}
    return TeacherCache(ledger.folder, settings, maps, shard, start, length, bases)
