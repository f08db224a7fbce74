"""Building a teacher cache: what it lacks is planned, computed and added, and no row twice."""

import contextlib
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, Shaped

from xdistil_jax import hosts, sharding, storage
from xdistil_jax.models.functional import Functional
from xdistil_jax.teacher.basis import Bases, fit_basis, has_bases, read_bases, write_bases
from xdistil_jax.teacher.cache import TeacherCache, bind
from xdistil_jax.teacher.codec import find_codec
from xdistil_jax.teacher.forward import Done, Pass, Rows, Work
from xdistil_jax.teacher.manifest import (
    CacheSettings,
    has_manifest,
    label,
    lock,
    nearest,
    read_manifest,
    refuse_misfit,
    write_manifest,
)
from xdistil_jax.teacher.plan import claim, write_plan
from xdistil_jax.teacher.shapes import Shapes
from xdistil_jax.teacher.shards import ROW, Ledger, Sealed, distinct, keys, locate
from xdistil_jax.trees import leaves
from xdistil_jax.types import Params

SHARD_BYTES = 40 << 20
# What a codec's basis is fitted to: 32 pieces a direction for the widest of encoders.
_SAMPLED_PIECES = 1 << 15
# With fewer batches the pass is over before an estimate is of use.
_WORTH_TIMING = 8


def build_cache(
    root: str | Path,
    store: Rows,
    rows: Int[np.ndarray, "N"],
    functional: Functional,
    params: Params,
    settings: CacheSettings,
    *,
    mesh: Mesh,
    token_budget: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    only: str | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> TeacherCache:
    """The cache of ``settings`` in ``root``, with what it lacks of ``rows`` computed and added.

    No other row is read. A PCA codec's basis is fitted to a sample of the rows that an empty cache
    is to be filled with; all that is added later is encoded with the same one. ``token_budget`` is
    a batch's padded pieces (None: see ``shapes.batch_shapes``). ``only`` is the id, or the start of
    it, of the one cache that will do. ``params`` that are split over ``mesh`` stay so.

    Raises:
        CacheMismatch: if ``only`` doesn't fit the settings, or a newer version wrote the cache.
        CacheDamaged: naming a file that isn't what was written.
        ValueError: for rows that the store hasn't, a teacher whose states aren't finite, or a
            codec that is to keep more coordinates than there are.
    """
    root = Path(root)
    folder = root / settings.id
    if only is not None:
        refuse_misfit(root, settings, only)
    rows = _check_rows(store, rows, settings)
    row_keys = keys(store.row_hashes())
    lacking = len(_lacking(_read(folder), row_keys, rows))
    if hosts.primarys(has_manifest(folder) and not lacking):
        say(f"{label(settings.id)}: found, {len(rows):,} rows")
        return bind(_read(folder), settings, row_keys, rows)
    own = sharding.own_mesh(mesh)
    teacher = Pass(store, functional, sharding.own_copy(params, own), settings, own)
    blocks = sum(math.prod(leaf.shape) for leaf in _blocks(params))
    work = blocks * float(store.lengths[rows].sum())
    shapes = Shapes.of(own, settings.max_length, token_budget, work)
    with contextlib.ExitStack() as stack:
        if hosts.is_primary():
            _acquire(stack, folder, say)
            _prepare(folder, teacher, row_keys, rows, shapes, shard_bytes, say)
        hosts.barrier()
        _compute(folder, teacher, row_keys, rows, shapes, say)
        hosts.barrier()
        return bind(_read(folder), settings, row_keys, rows)


def _compute(
    folder: Path,
    teacher: Pass,
    row_keys: Shaped[np.ndarray, "R"],
    rows: Int[np.ndarray, "N"],
    shapes: Shapes,
    say: Callable[[str], None],
) -> None:
    """Fill this process's planned shards. Its lists are gone before the cache is bound."""
    ledger = _read(folder)
    lacking = _lacking(ledger, row_keys, rows)
    works = _works(ledger, teacher, row_keys, lacking, shapes)
    # All have seen the same shards before the first one is added.
    hosts.barrier()
    if len(lacking):
        say(_announce(folder.parent, ledger, teacher.settings, len(lacking)))
        teacher = replace(teacher, bases=_bases(folder, teacher.settings))
    _fill(ledger, teacher, row_keys, works, say)


def _blocks(params: Params) -> list[Any]:
    """The leaves that are multiplied with every piece."""
    return [leaf for path, leaf in leaves(params) if not path.startswith("embed/")]


def _acquire(stack: contextlib.ExitStack, folder: Path, say: Callable[[str], None]) -> None:
    """Hold the cache's lock until ``stack`` is closed; another builder is waited for."""
    if not stack.enter_context(lock(folder)):
        say(f"{label(folder.name)}: another process is building it; waiting")
        stack.enter_context(lock(folder, wait=True))


def _check_rows(
    store: Rows, rows: Int[np.ndarray, "N"], settings: CacheSettings
) -> Int[np.ndarray, "N"]:
    """The rows, sorted, each once."""
    count = len(store.sentence)
    rows = np.unique(np.asarray(rows))
    if not len(rows) or rows.dtype.kind not in "iu" or rows[0] < 0 or rows[-1] >= count:
        raise ValueError(f"rows: expected one or more row numbers of the store, 0 to {count - 1}")
    if store.max_length != settings.max_length:
        raise ValueError(
            f"settings.max_length is {settings.max_length}, but the store was encoded with "
            f"{store.max_length}: pass the store's"
        )
    return rows


def _read(folder: Path) -> Ledger:
    """The ledger of a cache that this version can read, or of one that isn't there yet."""
    storage.refresh(folder)
    if has_manifest(folder):
        read_manifest(folder)
    return Ledger.read(folder)


def _tidy(folder: Path, settings: CacheSettings) -> Ledger:
    """Remove what a killed build has left unfinished; the lock is held."""
    for unfinished in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    write_manifest(folder, settings)
    return _read(folder)


def _lacking(
    ledger: Ledger, row_keys: Shaped[np.ndarray, "R"], rows: Int[np.ndarray, "N"]
) -> Int[np.ndarray, "M"]:
    """One row for each text that no shard holds, sorted by key."""
    absent = rows[locate(ledger.key, row_keys[rows]) < 0]
    return absent[distinct(row_keys[absent])]


def _prepare(
    folder: Path,
    teacher: Pass,
    row_keys: Shaped[np.ndarray, "R"],
    rows: Int[np.ndarray, "N"],
    shapes: Shapes,
    shard_bytes: int,
    say: Callable[[str], None],
) -> None:
    """Tidy up, fit the codec's basis, and plan shards for rows that no shard and no plan has."""
    ledger = _tidy(folder, teacher.settings)
    lengths, lacking = teacher.store.lengths, _lacking(ledger, row_keys, rows)
    if not len(lacking):
        return
    # Damage is said before a long pass, not after it.
    bind(ledger, teacher.settings, row_keys, rows[locate(ledger.key, row_keys[rows]) >= 0])
    _fit_bases(ledger, teacher, lacking, shapes, say)
    _, left = claim(ledger, row_keys[lacking])
    if not left.any():
        return
    # Longest first: should memory not do, it shows in the first batch.
    fresh = lacking[left][np.argsort(-lengths[lacking[left]], kind="stable")]
    write_plan(
        ledger,
        row_keys[fresh],
        lengths[fresh],
        shapes.cut(lengths[fresh]),
        bytes_per_token=replace(teacher, bases=_bases(folder, teacher.settings)).bytes_per_token(),
        shard_bytes=shard_bytes,
        token_budget=shapes.token_budget,
    )


def _fit_bases(
    ledger: Ledger,
    teacher: Pass,
    lacking: Int[np.ndarray, "M"],
    shapes: Shapes,
    say: Callable[[str], None],
) -> None:
    """Fit and seal what the codec needs, unless it is there, before anything is planned."""
    settings, lengths = teacher.settings, teacher.store.lengths
    kept = find_codec(settings.codec).kept
    if kept is None or ledger.shards or has_bases(ledger.folder):
        return
    # In the order of their hashes, any first rows are a sample: the same one for the same text,
    # however it is batched, and however often the build was killed.
    count = 1 + int(np.searchsorted(lengths[lacking].cumsum(), _SAMPLED_PIECES))
    rows = lacking[:count]
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    say(f"{label(settings.id)}: fitting the basis of {settings.codec} to {len(rows):,} rows")
    works = [Work(0, rows[cut.start : cut.stop], cut) for cut in shapes.cut(lengths[rows])]
    sample = teacher.sample(works)
    write_bases(ledger.folder, {layer: fit_basis(states, kept) for layer, states in sample.items()})


def _bases(folder: Path, settings: CacheSettings) -> Bases:
    """What the codec needs."""
    if find_codec(settings.codec).kept is None:
        return Bases()
    return read_bases(folder, settings.layers)


def _works(
    ledger: Ledger,
    teacher: Pass,
    row_keys: Shaped[np.ndarray, "R"],
    lacking: Int[np.ndarray, "M"],
    shapes: Shapes,
) -> list[Work]:
    """This process's batches: it computes every P-th of the planned shards, alone."""
    works = []
    for planned in hosts.share(claim(ledger, row_keys[lacking])[0]):
        rows = lacking[locate(row_keys[lacking], planned.keys)]
        # The plan's own budget: a build that goes on gives the bytes of one that ran through.
        cuts = shapes._replace(token_budget=planned.token_budget).cut(teacher.store.lengths[rows])
        works += [Work(planned.number, rows[cut.start : cut.stop], cut) for cut in cuts]
    return works


def _announce(root: Path, ledger: Ledger, settings: CacheSettings, rows: int) -> str:
    """What is about to be built, and why no other cache would do."""
    message = f"{label(settings.id)}: building {rows:,} rows"
    if len(ledger.key):
        message += f" beside {len(ledger.key):,}"
    elif (other := nearest(root, settings)) is not None:
        message += f"; differs from {other[0][:6]} in {', '.join(other[1])}"
    return message


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def _fill(
    ledger: Ledger,
    teacher: Pass,
    row_keys: Shaped[np.ndarray, "R"],
    works: list[Work],
    say: Callable[[str], None],
) -> None:
    """Compute batch after batch, and write each at once; a shard is there when it has all."""
    lengths = teacher.store.lengths
    facts: dict[int, dict[str, Any]] = {}
    for work in works:
        fact = facts.setdefault(work.shard, {"rows": 0, "tokens": 0})
        fact["rows"] += len(work.rows)
        fact["tokens"] += int(lengths[work.rows].sum())
        if teacher.bases.identity:
            fact["basis"] = teacher.bases.identity

    def arrays(work: Work, states: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        record = np.empty(len(work.rows), ROW)
        record["hash"] = row_keys[work.rows].view("<u8").reshape(-1, 2)
        record["length"] = lengths[work.rows]
        return {**states, "rows": record}

    timed = _timed(teacher.run(works), works, teacher.settings, say)
    for number, group in itertools.groupby(timed, lambda done: done[0].shard):
        path = ledger.folder / "shards" / f"{number:06d}" / "shard.json"
        Sealed.write_parts(path, itertools.starmap(arrays, group), facts[number])


def _timed(
    batches: Iterator[Done],
    works: list[Work],
    settings: CacheSettings,
    say: Callable[[str], None],
) -> Iterator[Done]:
    """``batches`` as they are; says, after the first few, how long the others will take."""
    padded = np.array([work.cut.size * work.cut.width for work in works])
    started = 0.0
    for number, batch in enumerate(batches, 1):
        if number == 1:
            # What lies before is the compilation.
            started = time.perf_counter()
        if number == _WORTH_TIMING:
            rate = padded[1:number].sum() / (time.perf_counter() - started)
            say(f"{label(settings.id)}: about {_duration(padded[number:].sum() / rate)} to go")
        yield batch
