"""A tiny teacher and random text; as a program, builders that die at their n-th file event."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from xdistil_jax.data.encode import EncodedStore
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.sharding import make_mesh
from xdistil_jax.teacher.build import build_cache
from xdistil_jax.teacher.cache import TeacherCache
from xdistil_jax.teacher.manifest import CacheSettings

VOCABULARY = 60
SPEC = EncoderSpec(
    vocab_size=VOCABULARY, width=16, layers=2, heads=2, feed_forward=32, positions=40
)
LAYERS = ("embedding", "layer_2")
SETTINGS = CacheSettings(teacher="t", tokenizer="p", layers=LAYERS, max_length=40)


def make_store(rows: list[list[int]], max_length: int = 40) -> EncodedStore:
    """A store of these rows, each a sentence of one word."""
    lengths = [len(row) for row in rows]
    tokens = np.array([token for row in rows for token in row], np.int32)
    return EncodedStore(
        tokens=tokens,
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        word=np.full(len(tokens), -1, np.int32),
        owned=np.zeros(len(tokens), bool),
        labels=np.full(len(tokens), -1, np.int8),
        sentence=np.arange(len(rows), dtype=np.int32) + 100,
        language=np.zeros(len(rows), np.int16),
        languages=("en",),
        word_counts=np.ones(len(rows) + 100, np.int32),
        max_length=max_length,
        identity="toy",
    )


def random_rows(count: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
    """Token ids; no two rows are equal."""
    generator = np.random.default_rng(seed)
    rows: dict[tuple[int, ...], None] = {}
    while len(rows) < count:
        length = generator.integers(3, longest + 1)
        rows[tuple(generator.integers(0, VOCABULARY, length).tolist())] = None
    return [list(row) for row in rows]


def make_params(seed: int = 0) -> dict:
    # Larger than at the start of training, so that attention matters.
    return jax.tree.map(lambda leaf: 8 * leaf, build(SPEC).init(jax.random.key(seed)))


def build_toy(root: Path, store: EncodedStore, rows=None, *, devices: int = 1, **kwargs):
    """``build_cache`` with everything else filled in."""
    rows = np.arange(store.rows) if rows is None else rows
    options = {"params": None, "settings": SETTINGS, "token_budget": 160, "shard_bytes": 20_000}
    options |= kwargs
    params = make_params() if options["params"] is None else options["params"]
    del options["params"]
    settings = options.pop("settings")
    mesh = make_mesh(jax.devices()[:devices])
    cache = build_cache(root, store, rows, build(SPEC), params, settings, mesh=mesh, **options)
    assert isinstance(cache, TeacherCache)
    return cache


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kill_at(event: int, root: str) -> None:
    """Die, as by kill -9, when the process touches files below ``root`` for the n-th time."""
    left = [event]

    def hook(name: str, arguments: tuple) -> None:
        if name in ("open", "os.mkdir", "os.rename") and str(arguments[0]).startswith(root):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _fork_build(folder: str, codec: str, event: int | None = None) -> int:
    """Build in a child process; gives 0, or the signal that it died of."""
    # No backend has been started yet, so a fork is safe and saves the imports.
    child = os.fork()
    if not child:
        if event is not None:
            kill_at(event, folder)
        settings = replace(SETTINGS, codec=codec)
        build_toy(Path(folder), make_store(random_rows(60)), settings=settings)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    root, compiled, codec, *events = sys.argv[1:]
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert _fork_build(f"{root}/whole", codec) == 0
    for number in map(int, events):
        status = _fork_build(f"{root}/{number}", codec, number)
        built = len(list(Path(root, str(number)).glob("*/shards/0*")))
        resumed = _fork_build(f"{root}/{number}", codec)
        print(number, status, built, resumed, flush=True)  # noqa: T201
