"""Compile the programs of a run for a TPU pod, on a machine without a TPU, and say what they cost.

    python tpu/aot.py experiments/wikiann.py --topology v5e:16x16 --teacher mbert
    python tpu/aot.py --teacher xlmr-xl --tensor-parallel 4 --topology v5e:4x4

Needs libtpu (``pip install "xdistil_jax[tpu]"``), no data, no weights, no network. Exits with 1 if
a program doesn't fit the memory of a chip.
"""

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

# Before jax is loaded: it must not look for the TPU of this machine, or for the host of one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# What libtpu would ask of a real one; any answer will do.
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
# The compiler may run in several processes; only the device may not.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
from costs import Cost, read_cost
from jax.experimental import topologies
from plans import TEACHERS, Plan, make_plan
from programs import Program, programs

from xdistil_jax.chips import Chip, read_chip
from xdistil_jax.configs import STUDENTS
from xdistil_jax.experiment import Experiment
from xdistil_jax.planning import load_experiment

_GIB = 2**30
# "Used 17.1G of 15.75G hbm", or "required for HLO temporaries (59.61G) exceeds ... HBM (15.75G)".
_TOO_LARGE = re.compile(r"(?:Used |\()([\d.]+\w)\)? (?:of|exceeds available HBM) \(?([\d.]+\w)")


class Report(NamedTuple):
    """A compiled program. Bytes are those of one chip; ``needed`` is all of them together.

    ``refused`` is what the compiler said where it found no room.
    """

    program: Program
    arguments: int = 0
    temporary: int = 0
    output: int = 0
    needed: int = 0
    cost: Cost = Cost(0, 0, ())
    seconds: float = 0.0
    refused: str = ""

    def fits(self, chip: Chip) -> bool:
        return not self.refused and self.needed <= chip.hbm_gb * _GIB

    def roofline(self, chip: Chip) -> tuple[float, str]:
        """(seconds at least, what bounds them)."""
        bounds = {
            "FLOPs": self.cost.flops / chip.flops,
            "HBM": self.cost.bytes / (1e9 * chip.gb_per_s),
        }
        bound = max(bounds, key=bounds.get)
        return bounds[bound], bound


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print a table, and give the exit code."""
    given = _parse(arguments)
    try:
        chip = read_chip(given.topology.partition(":")[0])
        planned = _plan(given)
    except (ValueError, OSError) as error:
        sys.exit(f"tpu/aot.py: {error}")
    print(_headline(planned, given.topology, chip), flush=True)
    print(_HEAD, flush=True)
    fit = True
    for program in programs(planned):
        if any(fnmatchcase(program.name, pattern) for pattern in given.only):
            report = compile_program(program)
            print(_line(report, chip), flush=True)
            fit = fit and report.fits(chip)
    if not fit:
        print(
            f"\nNot every program fits {chip.hbm_gb:g} GiB: split the teacher "
            "(--tensor-parallel), take more chips, or make batches smaller (--tokens-per-chip)."
        )
    return 0 if fit else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tpu/aot.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("experiment", nargs="?", help="an experiment file, as for xdistil run")
    add("--topology", default="v5e:16x16", help="chip:shape, such as v5e:4x4 or v5p:2x2x1")
    add("--strategy", help="another one than the experiment's: D4.2, logit-ce, ...")
    add("--teacher", default="", choices=sorted(TEACHERS), help="sizes of a teacher, by name")
    add("--student", default="", choices=STUDENTS, help="sizes of a student, by name")
    add(
        "--tensor-parallel",
        type=int,
        help="0: a whole teacher on each chip; n: split, heads n ways",
    )
    add(
        "--tokens-per-chip", type=int, default=0, help="padded tokens of a batch on each data shard"
    )
    add("--all-buckets", action="store_true", help="every width of a batch, not only the greatest")
    add("--only", nargs="+", default=["*"], metavar="NAME", help="programs, as globs: 'cache pass'")
    add("--classes", type=int, default=7, help="number of tags")
    add("--words", type=int, default=100_000, help="words of the dev set")
    return parser.parse_args(arguments)


def _plan(given: argparse.Namespace) -> Plan:
    if given.experiment:
        experiment = load_experiment(given.experiment)(given.strategy)
    else:
        experiment = Experiment(strategy=given.strategy or Experiment.strategy)
    return make_plan(
        experiment, _devices(given.topology), teacher=given.teacher, student=given.student,
        tensor_parallel=given.tensor_parallel, tokens_per_chip=given.tokens_per_chip,
        all_buckets=given.all_buckets, classes=given.classes, words=given.words,
    )  # fmt: skip


def _devices(topology: str) -> Sequence[jax.Device]:
    """The chips of ``topology``, as the compiler sees them.

    Raises:
        ValueError: without libtpu, and for a shape that there isn't.
    """
    # One device of the two cores of a chip, where the compiler would else see two.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:
        raise ValueError(
            f"--topology {topology}: {error}\nThe compiler comes with libtpu, for Linux on x86-64: "
            'pip install "xdistil_jax[tpu]". Shapes are those of a slice: v5e:4x4, v5p:2x2x4'
        ) from error


def compile_program(program: Program) -> Report:
    """Lower and compile; what the compiler finds too large is a report, too."""
    started = time.perf_counter()
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = _TOO_LARGE.search(str(error))
        told = f"{found[1]}iB of {found[2]}iB" if found else str(error).splitlines()[0][:200]
        return Report(program, seconds=time.perf_counter() - started, refused=told)
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    parts = (
        memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes,
        memory.generated_code_size_in_bytes, program.kept,
    )  # fmt: skip
    needed = sum(parts) - memory.alias_size_in_bytes
    return Report(program, *parts[:3], needed, read_cost(compiled.as_text()), seconds)


_COLUMNS = (
    "program", "batch/chip", "memory GiB", "arguments", "temporary", "output", "TFLOP", "HBM GB",
    "roofline ms", "collectives", "compiled in s",
)  # fmt: skip
_HEAD = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"


def _headline(planned: Plan, topology: str, chip: Chip) -> str:
    mesh, theirs = planned.mesh, planned.teacher_mesh
    split = f"split over {dict(theirs.shape)}" if planned.split else "whole on each chip"
    return (
        f"{topology}: {mesh.size} chips of {chip.hbm_gb:g} GiB, {chip.flops / 1e12:g} TFLOP/s, "
        f"{chip.gb_per_s:g} GB/s ({chip.source})\n"
        f"teacher {planned.teacher.family} ({planned.teacher.layers} layers of "
        f"{planned.teacher.width}, {split}), student {type(planned.student).__name__}, "
        f"{planned.dtype}; a train step is one of the "
        f"{planned.experiment.run.steps_per_call} of a call\n"
    )


def _line(report: Report, chip: Chip) -> str:
    program = report.program
    batch = f"{program.rows} x {program.width}"
    if report.refused:
        cells = [f"**{report.refused}: does not fit**", *["" for _ in range(7)]]
    else:
        needed = f"{report.needed / _GIB:.2f}"
        needed = needed if report.fits(chip) else f"**{needed}: does not fit**"
        sizes = (report.arguments, report.temporary, report.output)
        seconds, bound = report.roofline(chip)
        cells = [
            needed, *(f"{size / _GIB:.2f}" for size in sizes), f"{report.cost.flops / 1e12:.4g}",
            f"{report.cost.bytes / 1e9:.3g}", f"{seconds * 1e3:.3g} ({bound})", _told(report.cost),
        ]  # fmt: skip
    return f"| {' | '.join((program.name, batch, *cells, f'{report.seconds:.0f}'))} |"


def _told(cost: Cost) -> str:
    """``2 all-reduce 50.4 MB``; sums of a few numbers, as of a loss, are told apart."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for each in cost.collectives:
        kind = f"{each.kind} of scalars" if each.bytes <= 64 else each.kind
        counts[kind] += each.times
        sizes[kind] += each.bytes * each.times
    told = (f"{counts[kind]} {kind} {_size(sizes[kind])}" for kind in sorted(counts))
    return ", ".join(told) or "none"


def _size(count: int) -> str:
    return f"{count} B" if count < 1000 else f"{count / 1e6:.3g} MB"


if __name__ == "__main__":
    sys.exit(main())
