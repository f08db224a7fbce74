"""``xdistil bench``: sizes, milliseconds and throughput of an exported student, beside others."""

import json
import math
import os
import platform
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xdistil_jax import files, trees
from xdistil_jax.benchmark import tables
from xdistil_jax.benchmark.subjects import (
    RUNTIMES,
    SIX,
    STUDENT,
    TEACHER,
    Contender,
    Precision,
    Runtime,
    six_layers,
    teacher_spec,
)
from xdistil_jax.benchmark.turns import LeftOutError, Task, Worker, summary, take_turns
from xdistil_jax.deploy.bundle import Bundle, load_bundle
from xdistil_jax.deploy.words import GRAPHS
from xdistil_jax.models.encoder import EncoderSpec, parameter_shapes
from xdistil_jax.session import Say

Shape = tuple[int, int]
"""Rows and pieces of a batch."""

MARKS: tuple[Shape, ...] = ((32, 32), (1, 32))
"""What all are timed with."""
GRID: tuple[Shape, ...] = tuple((rows, width) for rows in (1, 8, 32, 128) for width in (16, 32, 64))
RESULT = "bench.json"
_VERSIONS = ("xdistil_jax", "jax", "onnxruntime", "torch", "transformers", "numpy")


def bench(
    folder: str | Path,
    *,
    teacher: str = "mbert-base",
    seconds: float = 2.0,
    grid: Sequence[Shape] = GRID,
    say: Say = lambda message: None,
) -> dict[str, Any]:
    """Time an exported student on this machine's CPU, and store what was found in its folder.

    Each contender has a process of its own; they are timed in turn, ``seconds`` for each figure,
    compilation and warm-up apart. Beside the student stand the student in PyTorch, a 6-layer
    transformer, and the teacher, of random weights (see ``subjects.teacher_spec``): first in every
    runtime that is installed, one after the other, and then the fastest in turn with the others.
    Batches are no longer than a transformer student's rows may be; texts are, and read in windows.
    ``bench.json`` is written, and the model card's section on latency.

    Raises:
        BundleError: if the student there is damaged.
        ValueError: if no student was exported there, or for a teacher that isn't known.
    """
    folder = Path(folder)
    for name in GRAPHS.values():
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: give a folder that xdistil export wrote")
    bundle = load_bundle(folder)
    spec = teacher_spec(teacher, len(bundle.tagset))
    race = _Race(seconds, say)
    try:
        fastest = _run(race, folder, bundle, spec, grid)
        threads = _by_threads(race, folder, *_marks(bundle)[0])
    finally:
        race.leave(race.workers)
    found = {
        **_about(folder, bundle, teacher, spec),
        "fastest": fastest,
        "times": race.times,
        "threads": threads,
        "left_out": race.left_out,
    }
    files.write_atomic(folder / RESULT, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    card = folder / "README.md"
    if card.is_file():
        files.write_atomic(card, tables.into_card(card.read_text(encoding="utf-8"), found))
    return found


class _Race:
    """Who takes part, and what was found: the last figures of a contender at a task."""

    def __init__(self, seconds: float, say: Say) -> None:
        self.seconds, self.say = seconds, say
        self.workers: dict[Contender, Worker] = {}
        self.found: dict[tuple[Contender, Task], dict[str, Any]] = {}
        self.left_out: dict[str, str] = {}

    @property
    def times(self) -> list[dict[str, Any]]:
        """The student's first, the teacher's last."""
        order = (STUDENT, SIX, TEACHER)
        return sorted(self.found.values(), key=lambda each: order.index(each["model"]))

    def enter(self, contenders: Iterable[Contender]) -> None:
        for each in contenders:
            self.say(f"loading {each}")
            try:
                self.workers[each] = Worker(each)
            except LeftOutError as reason:
                self._drop(reason)

    def leave(self, contenders: Iterable[Contender]) -> None:
        for each in list(contenders):
            if each in self.workers:
                self.workers.pop(each).close()

    def run(self, task: Task, contenders: Collection[Contender] | None = None) -> None:
        """Time those of them that are there, or all."""
        self.say(f"timing {task.rows} × {task.length}, {task.kind}")
        while present := [
            worker
            for each, worker in self.workers.items()
            if contenders is None or each in contenders
        ]:
            try:
                found = take_turns(present, task, self.seconds)
            except LeftOutError as reason:
                self.workers.pop(reason.contender)
                self._drop(reason)
                continue
            for each, seconds in found.items():
                self.found[each, task] = _row(each, task, seconds)
            return

    def _drop(self, reason: LeftOutError) -> None:
        self.say(f"{reason.contender} is left out: {reason}")
        self.left_out[str(reason.contender)] = str(reason)


def _run(
    race: _Race, folder: Path, bundle: Bundle, spec: EncoderSpec, grid: Sequence[Shape]
) -> dict[str, str]:
    """All at the marks; then all but the slower teachers at every shape; gives the fastest ones."""
    place, marks = str(folder), _marks(bundle)
    _find_fastest(race, place, spec, marks)
    ours = [Contender(STUDENT, "onnxruntime", each, place) for each in ("fp32", "int8")]
    ours.append(Contender(STUDENT, "JAX", "fp32", place))
    race.enter([*ours, Contender(STUDENT, "PyTorch", "fp32", place)])
    forms: tuple[tuple[Runtime, Precision], ...] = (
        ("JAX", "fp32"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    )
    race.enter(Contender(SIX, *form, place, six_layers(bundle)) for form in forms)
    for rows, length in dict.fromkeys((*marks, *grid)):
        if length <= _longest(bundle):
            race.run(Task("pieces", rows, length))
    fastest = {
        f"{rows}x{length}": tables.fastest(race.times, rows, length) for rows, length in marks
    }
    race.leave(each for each in race.workers if each not in ours)
    for shape in grid:
        race.run(Task("text", *shape))
    race.leave(ours)
    return fastest


def _longest(bundle: Bundle) -> float:
    """Pieces of the longest row that the student can read."""
    return bundle.max_length if bundle.kind == "transformer" else math.inf


def _marks(bundle: Bundle) -> list[Shape]:
    return [(rows, int(min(length, _longest(bundle)))) for rows, length in MARKS]


def _find_fastest(race: _Race, place: str, spec: EncoderSpec, marks: Sequence[Shape]) -> None:
    """Time the teacher in all runtimes, of which the fastest at each mark stay.

    One after the other, as seven of them would fill a small machine's memory.
    """
    for runtime, precisions in RUNTIMES.items():
        for precision in precisions:
            race.enter([Contender(TEACHER, runtime, precision, place, spec)])
            entered = [each for each in race.workers if each.how == f"{runtime} {precision}"]
            for mark in marks:
                race.run(Task("pieces", *mark), entered)
            kept = {tables.fastest(race.times, *mark) for mark in marks}
            race.leave(each for each in race.workers if each.how not in kept)


def _by_threads(race: _Race, folder: Path, rows: int, length: int) -> list[dict[str, Any]]:
    """Pieces a second of each graph, with 1, 2, 4 … threads, in batches of this shape."""
    cores = os.cpu_count() or 1
    counts = sorted({*(1 << n for n in range(cores.bit_length()) if 1 << n <= cores), cores})
    task = Task("pieces", rows, length)
    race.enter(
        Contender(STUDENT, "onnxruntime", precision, str(folder), threads=count)
        for count in counts
        for precision in ("fp32", "int8")
    )
    race.run(task)
    timed = [each for each in race.found if each[0].threads]
    found = [race.found.pop(each) for each in timed]
    return [
        {
            "precision": each["precision"],
            "threads": each["threads"],
            "pieces_per_s": 1e3 * rows * length / each["median_ms"],
        }
        for each in found
    ]


def _row(contender: Contender, task: Task, seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "model": contender.model,
        "runtime": contender.runtime,
        "precision": contender.precision,
        "threads": contender.threads,
        **task._asdict(),
        **summary(seconds),
    }


def _about(folder: Path, bundle: Bundle, teacher: str, spec: EncoderSpec) -> dict[str, Any]:
    """Sizes, and where and when this was."""
    parameters = sum(leaf.size for leaf in bundle.weights.values())
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} cores ({_processor()}), {platform.system()}, the CPU alone",
        "versions": {name: found for name in _VERSIONS if (found := _version(name))},
        "student": {
            "parameters": parameters,
            "bytes": {each.name: each.stat().st_size for each in sorted(folder.glob("model*"))},
        },
        "teacher": {"name": teacher, "parameters": _count(spec)},
        "compression": _count(spec) / parameters,
        SIX: {"parameters": _count(six_layers(bundle))},
    }


def _count(spec: EncoderSpec) -> int:
    sizes = trees.leaves(parameter_shapes(spec))
    return sum(math.prod(shape) for _, shape in sizes)


def _processor() -> str:
    """Its name, where the system tells."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
