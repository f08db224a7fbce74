"""Table 16: sixteen sizes of the student, their F1 and their speed.

    python experiments/table16.py                              # speed, random weights, this machine
    xdistil table experiments/table16.py --test                # F1, English, four sizes
    xdistil table experiments/table16.py --size full --test    # the paper's; hub, accelerator

Speed needs no training: random weights, 88,500 pieces, exported; against mBERT-base (119,547
pieces) in the fastest runtime of this machine, 1,000 queries or more of each in batches of 32 × 32
and of 1 × 32 pieces, int8 and fp32 in onnxruntime; a batch's median is told.
"""

import argparse
import tempfile
from math import ceil
from pathlib import Path

import full as paper
import latency
from table3 import TEXT

from xdistil_jax import Experiment, markdown, trees
from xdistil_jax.benchmark.bench import MARKS, bench
from xdistil_jax.benchmark.subjects import RUNTIMES, STUDENT, TEACHER, Contender, teacher_spec
from xdistil_jax.benchmark.turns import Task, Worker, summary, take_turns
from xdistil_jax.models.bilstm import BiLSTMSpec, parameter_count
from xdistil_jax.models.functional import abstract_params
from xdistil_jax.study import Study, Variant, varied
from xdistil_jax.terminal import told

PAPER = {
    (300, 600): ("88.6", 14, 8), (200, 600): ("88.5", 15, 9), (300, 400): ("88.2", 23, 11),
    (200, 400): ("88.2", 25, 12), (100, 600): ("87.9", 16, 9), (100, 400): ("87.7", 24, 13),
    (50, 600): ("87.7", 16, 10), (300, 200): ("87.5", 40, 15), (200, 200): ("87.5", 46, 16),
    (50, 400): ("87.2", 27, 13), (100, 200): ("86.9", 49, 15), (50, 200): ("86.5", 51, 16),
    (300, 100): ("86.2", 62, 16), (200, 100): ("85.9", 68, 17), (100, 100): ("85.6", 74, 15),
    (50, 100): ("84.6", 77, 16),
}  # fmt: skip
"""(E, H) -> F1, speed-up at batch 32 (a P100) and at batch 1 (a Xeon E5-2690 v4)."""


def rows(base: Experiment, sizes: tuple[tuple[int, int], ...]) -> tuple[Variant, ...]:
    """A row for each (E, H)."""
    return tuple(
        Variant(f"{e}, {h}", varied(base, student={"embed": e, "hidden": h}), PAPER[e, h][0])
        for e, h in sizes
    )


ENGLISH = varied(TEXT, strategy="D4.1", run={"latency": True})
small = Study(
    "Table 16, English, D4.1, the text of the 20,000 labelled sentences",
    rows(ENGLISH, ((50, 100), (50, 200), (100, 200), (300, 400))),
    orders=(("50, 200", "50, 100"), ("100, 200", "50, 200"), ("300, 400", "100, 200")),
    note=paper.context("en"),
)
full = Study(
    "Table 16, 41 languages",
    rows(paper.experiment, tuple(PAPER)),
    orders=(("300, 600", "50, 200"), ("50, 200", "50, 100")),
    note=paper.context(),
)


def times(workers: list[Worker], queries: int) -> list[list[float]]:
    """Median milliseconds of each at both shapes, timed in turn.

    For a second or longer: the first calls of a turn find caches that others have filled.
    """
    found = []
    for rows, length in MARKS:
        taken = take_turns(workers, Task("pieces", rows, length), 1.0, ceil(queries / rows))
        found.append([summary(taken[each.contender])["median_ms"] for each in workers])
    return found


def time_sizes(folder: Path, queries: int) -> None:
    """Print a row for each size; teacher and student are timed in turn."""
    places = {size: folder / f"E{size[0]}-H{size[1]}" for size in PAPER}
    for (embed, hidden), place in places.items():
        latency.make(place, embed, hidden)
    fastest = bench(places[50, 200], seconds=0.5, grid=(), say=print)["fastest"]
    spec, place = teacher_spec("mbert-base", len(latency.TAGS)), str(places[50, 200])
    known = [Contender(TEACHER, run, how, place, spec) for run in RUNTIMES for how in RUNTIMES[run]]
    teachers = [Worker(each) for each in known if each.how in fastest.values()]
    print("\n" + ". ".join(f"mBERT-base at {name}: {how}" for name, how in fastest.items()) + ".\n")
    shapes = [f"{rows} × {length}" for rows, length in MARKS]
    cells = [
        f"{each}{what}" for each in shapes for what in (", fp32", ", int8", ", times", ", paper")
    ]
    print(markdown.table(["E", "H", "parameters", "smaller", *cells], []))
    whole = sum(leaf.size for _, leaf in trees.leaves(abstract_params(spec)))
    for (embed, hidden), (_, *published) in PAPER.items():
        place = str(places[embed, hidden])
        students = [
            Worker(Contender(STUDENT, "onnxruntime", how, place)) for how in ("fp32", "int8")
        ]
        own = parameter_count(BiLSTMSpec(latency.PIECES, embed, hidden, classes=len(latency.TAGS)))
        row = [f"{embed}", f"{hidden}", f"{own / 1e6:.1f}M", f"{whole / own:.1f}×"]
        for (fp32, int8, *theirs), paper_said in zip(
            times(students + teachers, queries), published, strict=True
        ):
            row += [f"{fp32:.2f}", f"{int8:.2f}", f"{min(theirs) / int8:.0f}×", f"{paper_said}×"]
        print(markdown.line(row), flush=True)
        for each in students:
            each.close()
    for each in teachers:
        each.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--queries", type=int, default=1000, help="sentences timed, of each shape")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        time_sizes(Path(folder), given.queries)


if __name__ == "__main__":
    with told("table16.py"):
        main()
