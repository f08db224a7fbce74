"""The persistent compilation cache, and a count of what had to be compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

_MISS = "/jax/compilation_cache/cache_misses"
_HIT = "/jax/compilation_cache/cache_hits"
_SECONDS = "/jax/core/compile/backend_compile_duration"
# Without these two, JAX keeps only what took over a second to compile.
_KEEP_EVERYTHING = {
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@dataclass
class Compilations:
    """What was compiled (``misses``), what was found on disk (``hits``), and how long both took."""

    misses: int = 0
    hits: int = 0
    seconds: float = 0.0

    def _count(self, event: str, **_: Any) -> None:
        self.misses += event == _MISS
        self.hits += event == _HIT

    def _time(self, event: str, seconds: float, **_: Any) -> None:
        self.seconds += seconds if event == _SECONDS else 0.0


@contextmanager
def persistent_cache(folder: str | Path) -> Iterator[Compilations]:
    """Keep every compiled program in ``folder`` while the block runs, and count.

    A cache folder that the caller has configured stays; all settings are restored at the end.
    """
    counted = Compilations()
    chosen = dict(_KEEP_EVERYTHING)
    if jax.config.jax_compilation_cache_dir is None:
        chosen["jax_compilation_cache_dir"] = str(Path(folder).resolve())
    before = {name: getattr(jax.config, name) for name in chosen}
    for name, value in chosen.items():
        jax.config.update(name, value)
    _reset()
    jax.monitoring.register_event_listener(counted._count)
    jax.monitoring.register_event_duration_secs_listener(counted._time)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_listener(counted._count)
        jax.monitoring.unregister_event_duration_listener(counted._time)
        for name, value in before.items():
            jax.config.update(name, value)
        _reset()


def _reset() -> None:
    """JAX reads the folder once, at the first compilation: let it look again."""
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()
