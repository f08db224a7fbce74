"""Rows of a teacher cache read at random from where they could lie, against what a student eats.

    python experiments/storage_reads.py [--rows 4000] [--seconds 3] [--remote-rows 100]

States of width 768 in bf16 and 11 logits of random rows, 21 pieces on average, in the cache's own
shards: through its memory maps (as the step's feeder reads them, and row by row), the same rows by
fsspec from the local disk and from emulators of GCS and S3 on loopback, and by TensorStore from
the local disk. The student is ``tiny`` on 8,000 pieces, stage repr + logit, on batches that lie
ready. Warm page cache; one process. Beside rows a second stand those of a second of one core
("alone"), which other work on the machine doesn't change; the student gets all cores there. Needs
xdistil_jax[emulators]. Figures: README.md.
"""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
from jaxtyping import Int

from tests.buckets import EMULATORS
from tests.teacher.toys import make_store
from xdistil_jax.configs import STUDENTS
from xdistil_jax.data.batches import Buckets, Sampler, Source
from xdistil_jax.data.encode import EncodedStore
from xdistil_jax.distill.feed import Feeder
from xdistil_jax.distill.rates import hparams
from xdistil_jax.distill.stages import Schedule, Stage, StopRule, Term
from xdistil_jax.distill.state import Model, place, start_state
from xdistil_jax.distill.step import train_call
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.functional import build
from xdistil_jax.sharding import make_mesh, replicate
from xdistil_jax.teacher.cache import TeacherCache, bind
from xdistil_jax.teacher.manifest import CacheSettings, hidden_name
from xdistil_jax.teacher.shards import ROW, Ledger, Sealed, keys
from xdistil_jax.terminal import told

VOCABULARY, WIDTH, CLASSES, LONGEST = 8_000, 768, 11, 40
LAYER = "layer_7"
BATCH = 100
SETTINGS = CacheSettings("random", "random", (LAYER,), LONGEST)


@dataclass(frozen=True)
class Arguments:
    """``seconds`` for each local way; ``remote_rows`` are read through each emulator."""

    rows: int = 4_000
    seconds: float = 3.0
    remote_rows: int = 100


class Rate(NamedTuple):
    """Rows a second, and a second of one core."""

    wall: float
    core: float


def make_rows(count: int) -> EncodedStore:
    """Random rows of 3 to 40 pieces."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, LONGEST, count)
    return make_store([random.integers(4, VOCABULARY, n).tolist() for n in lengths], LONGEST)


def fill(folder: Path, store: EncodedStore, shards: int) -> TeacherCache:
    """A cache of random states, in the form in which ``build_cache`` writes one."""
    random, hashes = np.random.default_rng(1), store.row_hashes()
    for number, rows in enumerate(np.array_split(np.arange(store.rows), shards)):
        tokens = int(store.lengths[rows].sum())
        record = np.empty(len(rows), ROW)
        record["hash"], record["length"] = hashes[rows], store.lengths[rows]
        arrays = {
            hidden_name(LAYER): random.integers(0, 1 << 14, (tokens, WIDTH), np.uint16),
            "logits": random.standard_normal((tokens, CLASSES)).astype(np.float16),
            "rows": record,
        }
        Sealed.write(folder / "shards" / f"{number:06d}" / "shard.json", arrays, {})
    return bind(Ledger.read(folder), SETTINGS, keys(hashes), np.arange(store.rows))


def rate(work: Callable[[], int], seconds: float) -> Rate:
    """Of ``work``, which says how many rows it was; once warm."""
    work()
    rows, start, core = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        rows += work()
    return Rate(rows / (time.perf_counter() - start), rows / (time.process_time() - core))


def read_some(read: Callable[[Int[np.ndarray, "N"]], object], some: Iterator) -> int:
    """Read the next rows; gives their number."""
    rows = next(some)
    read(rows)
    return len(rows)


def draws(rows: int, size: int) -> Iterator[Int[np.ndarray, "N"]]:
    """Rows at random, without end."""
    random = np.random.default_rng(2)
    while True:
        yield random.integers(0, rows, size)


def student_rate(store: EncodedStore, cache: TeacherCache, seconds: float) -> Rate:
    """Rows that the train step of the tiny student takes on this machine."""
    sizes = STUDENTS["tiny"]
    spec = BiLSTMSpec(
        VOCABULARY, sizes.embed, sizes.hidden, WIDTH, CLASSES, "linear", "projection", LAYER
    )
    stage = Stage(
        "both", (Term("repr"), Term("logit")), spec.groups, 0.0, Schedule(1e-3), StopRule(1)
    )
    mesh = make_mesh(jax.devices()[:1])
    model, h = Model(spec, cache.lookup, "float32", mesh), replicate(hparams(stage, 1000), mesh)
    key = jax.random.key(0)
    state = place(model, start_state(build(spec).init(key), stage.program, key, h))
    every = np.arange(store.rows)
    source = Source(every, store.lengths, np.ones(store.rows))
    none = Source(every[:0], store.lengths[:0], np.ones(0))
    sampler = Sampler(Buckets((LONGEST,), 4096), none, source, 0.0, 0, 0)
    feeder = Feeder(store, sampler.buckets, cache, mesh, 4)
    call = next(sampler.calls(0, 4))
    feed, _ = feeder.feed(call, sampler.role(call.bucket))
    step, arrays = train_call(model, stage.program), replicate(cache.arrays, mesh)
    rows = int((call.rows >= 0).sum())

    def work() -> int:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, arrays, feed, h))
        return rows

    return rate(work, seconds)


def mapped(cache: TeacherCache) -> Callable[[Int[np.ndarray, "N"]], object]:
    """Copies of single rows, out of the maps."""

    def read(rows: Int[np.ndarray, "N"]) -> list[np.ndarray]:
        found = []
        for row in rows.tolist():
            start = cache.start[row]
            for maps in cache.maps.values():
                found.append(maps[cache.shard[row]][start : start + cache.length[row]].copy())
        return found

    return read


def by_fsspec(cache: TeacherCache, root: str) -> Callable[[Int[np.ndarray, "N"]], object]:
    """The same bytes, all of ``rows`` asked for at once."""
    import fsspec

    system, prefix = fsspec.core.url_to_fs(root)
    shards = sorted(cache.folder.glob("shards/*"))
    offsets = {name: maps[0].nbytes for name, maps in cache.maps.items()}
    files = {name: (shards[0] / f"{name}.npy").stat().st_size for name in offsets}
    headers = {name: files[name] - offsets[name] for name in offsets}

    def read(rows: Int[np.ndarray, "N"]) -> list[bytes]:
        paths, starts, ends = [], [], []
        for row in rows.tolist():
            for name, maps in cache.maps.items():
                width = maps[0].strides[0]
                first = headers[name] + int(cache.start[row]) * width
                paths.append(f"{prefix}/shards/{shards[cache.shard[row]].name}/{name}.npy")
                starts.append(first)
                ends.append(first + int(cache.length[row]) * width)
        return system.cat_ranges(paths, starts, ends)

    return read


def by_tensorstore(cache: TeacherCache, folder: Path) -> Callable[[Int[np.ndarray, "N"]], object]:
    """The same rows out of zarr arrays without compression, 64 pieces a chunk, all at once."""
    import tensorstore

    opened = {}
    for name, maps in cache.maps.items():
        for number, array in enumerate(maps):
            spec = {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": f"{folder}/{number}/{name}/"},
                "metadata": {
                    "shape": list(array.shape), "chunks": [64, array.shape[1]],
                    "dtype": array.dtype.str, "compressor": None,
                },
            }  # fmt: skip
            store = tensorstore.open(spec, create=True, open=True).result()
            store.write(array).result()
            opened[name, number] = store

    def read(rows: Int[np.ndarray, "N"]) -> list[np.ndarray]:
        asked = []
        for row in rows.tolist():
            start, stop = int(cache.start[row]), int(cache.start[row] + cache.length[row])
            asked += [opened[name, int(cache.shard[row])][start:stop].read() for name in cache.maps]
        return [each.result() for each in asked]

    return read


def through_emulators(given: Arguments, cache: TeacherCache) -> None:
    """``remote_rows``, once through each emulator."""
    import fsspec

    # Every request is logged.
    logging.disable()
    for scheme, emulator in EMULATORS.items():
        with emulator() as environment:
            os.environ.update(environment)
            system = fsspec.filesystem(scheme)
            system.put(str(cache.folder / "shards"), "there/shards", recursive=True)
            read, rows = by_fsspec(cache, f"{scheme}://there"), given.remote_rows
            start = time.perf_counter()
            read(next(draws(given.rows, rows)))
            found = rows / (time.perf_counter() - start)
            print(f"{f'fsspec, {scheme}:// emulated':34} {found:10,.0f} rows/s")


def main(given: Arguments) -> None:
    """Print a line for each way."""
    store = make_rows(given.rows)
    with tempfile.TemporaryDirectory() as folder:
        cache = fill(Path(folder, "cache"), store, max(1, given.rows // 1300))
        size = sum(path.stat().st_size for path in cache.folder.rglob("*.npy"))
        print(f"{given.rows:,} rows, {size / 1e6:.0f} MB, {store.lengths.mean():.1f} pieces a row")
        eaten = student_rate(store, cache, given.seconds)
        cores = len(os.sched_getaffinity(0))
        print(
            f"{'the student eats':34} {eaten.wall:10,.0f} rows/s {eaten.core * cores:10,.0f} alone"
        )

        def show(name: str, found: Rate) -> None:
            times = found.core / (eaten.core * cores)
            print(f"{name:34} {found.wall:10,.0f} rows/s {found.core:10,.0f} alone {times:8.1f}")

        local = {
            "memory maps, the cache's stream()": lambda rows: cache.stream(rows, LONGEST),
            "memory maps, row by row": mapped(cache),
            "fsspec, local": by_fsspec(cache, str(cache.folder)),
            "TensorStore, local": by_tensorstore(cache, Path(folder, "zarr")),
        }
        for name, read in local.items():
            rows = draws(given.rows, BATCH)
            show(name, rate(partial(read_some, read, rows), given.seconds))
        through_emulators(given, cache)


if __name__ == "__main__":
    import tyro

    with told("storage_reads.py"):
        main(tyro.cli(Arguments))
