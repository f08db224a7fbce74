"""The persistent compilation cache, and a count of what had to be compiled."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax

_MISS = "/jax/compilation_cache/cache_misses"
_HIT = "/jax/compilation_cache/cache_hits"
_SECONDS = "/jax/core/compile/backend_compile_duration"
# Without these two, JAX keeps only what took over a second to compile.
_KEEP_EVERYTHING = {
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
# Linux: a line for each memory map of this process, and how many it may have.
_MAPS, _MOST_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")

Function = TypeVar("Function", bound=Callable[..., Any])


def named(name: str) -> Callable[[Function], Function]:
    """A decorator below ``jax.jit``: what the program is called in tables and profiles."""

    def give(function: Function) -> Function:
        function.__name__ = name
        return function

    return give


@dataclass
class ProgramCount:
    """How often a jitted function was compiled and found on disk, each shape once."""

    compiled: int = 0
    found: int = 0
    seconds: float = 0.0


@dataclass
class Compilations:
    """What was compiled (``misses``), what was found on disk (``hits``), and how long both took;
    ``programs`` has the same for each jitted function, by its name."""

    misses: int = 0
    hits: int = 0
    seconds: float = 0.0
    programs: dict[str, ProgramCount] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._found = threading.local()

    def _count(self, event: str, **_: Any) -> None:
        self.misses += event == _MISS
        self.hits += event == _HIT
        if event in (_MISS, _HIT):
            # The time and the name come afterwards, from the same thread.
            self._found.last = event == _HIT

    def _time(self, event: str, seconds: float, *, fun_name: str = "?", **_: Any) -> None:
        if event != _SECONDS:
            return
        self.seconds += seconds
        name = fun_name.removeprefix("jit(").removesuffix(")")
        program = self.programs.setdefault(name, ProgramCount())
        found = getattr(self._found, "last", False)
        self._found.last = False
        program.found += found
        program.compiled += not found
        program.seconds += seconds


@contextmanager
def persistent_cache(folder: str | Path) -> Iterator[Compilations]:
    """Keep every compiled program in ``folder`` while the block runs, and count.

    A cache folder that the caller has configured stays; all settings are restored at the end, and
    room is made.
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
        make_room()


def make_room() -> None:
    """Let go of all compiled programs if they have taken a third of this process's memory maps.

    On a CPU a program is a hundred maps or more, and JAX keeps a program as long as the process
    lives. With none left LLVM ends the process: a sweep over sizes of students, or one run of many
    stages. A program that is needed again is found on disk.
    """
    try:
        most = int(_MOST_MAPS.read_text())
        with _MAPS.open("rb") as maps:
            taken = sum(1 for _ in maps)
    except OSError:
        return
    if 3 * taken > most:
        jax.clear_caches()


def _reset() -> None:
    """JAX reads the folder once, at the first compilation: let it look again."""
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()
