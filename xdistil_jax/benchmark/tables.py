"""What ``xdistil bench`` found, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from xdistil_jax.benchmark.subjects import SIX, STUDENT, TEACHER
from xdistil_jax.markdown import table

_HEADING = "## Sizes and latency"
Times = Sequence[Mapping[str, Any]]


def render(found: Mapping[str, Any]) -> str:
    """All of it."""
    return "\n\n".join([_sizes(found), _marks(found), *_grids(found), _threads(found), _end(found)])


def into_card(card: str, found: Mapping[str, Any]) -> str:
    """A model card with this in the place of its section on latency, or at its end."""
    before, heading, rest = card.partition(_HEADING + "\n")
    _, following, after = rest.partition("\n## ")
    said = f"{_HEADING}\n\n{render(found)}\n"
    if not heading:
        return f"{card.rstrip()}\n\n{said}"
    return f"{before}{said}{following}{after}"


def fastest(times: Times, rows: int, length: int) -> str:
    """The runtime in which the teacher was fastest; empty if it could be timed in none."""
    found = [each for each in at(times, rows, length) if each["model"] == TEACHER]
    return how(min(found, key=lambda each: each["median_ms"])) if found else ""


def at(times: Times, rows: int, length: int, kind: str = "pieces") -> list[Mapping[str, Any]]:
    """The figures of one shape."""
    return [
        each
        for each in times
        if (each["rows"], each["length"], each["kind"]) == (rows, length, kind)
    ]


def how(time: Mapping[str, Any]) -> str:
    """``onnxruntime int8``."""
    return f"{time['runtime']} {time['precision']}"


def _sizes(found: Mapping[str, Any]) -> str:
    student, teacher, six = (found[name] for name in (STUDENT, TEACHER, SIX))
    rows = [
        ["student", _millions(student), f"{found['compression']:.1f}×"],
        [f"teacher, {teacher['name']}", _millions(teacher), ""],
        [f"{SIX}, width 384", _millions(six), f"{_share(teacher, six):.1f}×"],
    ]
    sizes = [[f"`{name}`", f"{size / 1e6:.2f}"] for name, size in student["bytes"].items()]
    return "\n\n".join(
        [table(["", "parameters", "compression"], rows), table(["file", "MB"], sizes)]
    )


def _marks(found: Mapping[str, Any]) -> str:
    times, shapes = found["times"], [_shape(each) for each in found["fastest"]]
    said = (
        "Milliseconds from pieces to logits, median and 99th percentile, of batches of rows × "
        "pieces. *Times* compares with the teacher in its fastest runtime: "
        + ", ".join(f"{how} at {_name(_shape(shape))}" for shape, how in found["fastest"].items())
        + "."
    )
    head = ["", *(f"{_name(each)}{what}" for each in shapes for what in ("", ", p99", ", times"))]
    best = {each: min(_medians(times, TEACHER, each), default=None) for each in shapes}
    rows: dict[str, list[str]] = {}
    for shape in shapes:
        for each in at(times, *shape):
            name = f"{each['model']}, {how(each)}"
            faster = best[shape] and best[shape] / each["median_ms"]
            shown = _ms(each["median_ms"]), _ms(each.get("p99_ms")), _times(faster)
            rows.setdefault(name, [name]).extend(shown)
    whole = [row for row in rows.values() if len(row) == len(head)]
    return "\n\n".join([said, table(head, whole), _own_form(found, shapes)])


def _own_form(found: Mapping[str, Any], shapes: Sequence[tuple[int, int]]) -> str:
    """The student against itself in PyTorch."""
    parts = []
    for shape in shapes:
        there = [each for each in at(found["times"], *shape) if each["model"] == STUDENT]
        known = {how(each): each["median_ms"] for each in there}
        peer = known.pop("PyTorch fp32", None)
        if peer is not None:
            parts += [f"{name} {peer / own:.1f}× at {_name(shape)}" for name, own in known.items()]
    if not parts:
        return "The student's own form in PyTorch was not timed."
    return f"Times faster than the student's own form in PyTorch: {', '.join(parts)}."


def _grids(found: Mapping[str, Any]) -> list[str]:
    """The student, and who stayed, at every shape."""
    titles = {"pieces": "Pieces to logits", "text": "Text to spans"}
    parts = []
    for kind, title in titles.items():
        times = [each for each in found["times"] if each["kind"] == kind]
        shapes = list(dict.fromkeys((each["rows"], each["length"]) for each in times))
        names = list(dict.fromkeys(f"{each['model']}, {how(each)}" for each in times))
        rows = []
        for shape in sorted(shapes):
            there = {f"{e['model']}, {how(e)}": e for e in at(times, *shape, kind)}
            cells = [_both(there.get(name)) for name in names]
            rows.append([_name(shape), *cells])
        kept = [n for n in range(len(names)) if all(row[n + 1] != "-" for row in rows)]
        head = [title, *(names[n] for n in kept)]
        if kept:
            parts.append(table(head, [[row[0], *(row[n + 1] for n in kept)] for row in rows]))
    return ["Median (99th percentile) in milliseconds:", *parts] if parts else []


def _threads(found: Mapping[str, Any]) -> str:
    counts = sorted({each["threads"] for each in found["threads"]})
    rows = []
    for precision in dict.fromkeys(each["precision"] for each in found["threads"]):
        known = {
            each["threads"]: f"{each['pieces_per_s']:,.0f}"
            for each in found["threads"]
            if each["precision"] == precision
        }
        rows.append([f"onnxruntime {precision}", *(known.get(count, "-") for count in counts)])
    return table(["pieces a second, by threads", *map(str, counts)], rows)


def _end(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    parts = [
        f"`xdistil bench`, {found['date']}, {found['machine']}; {versions}. The teacher's weights "
        "are random: speed needs no training."
    ]
    parts += [f"Left out: {name}: {reason}." for name, reason in found["left_out"].items()]
    return "\n".join(parts)


def _medians(times: Times, model: str, shape: tuple[int, int]) -> list[float]:
    return [each["median_ms"] for each in at(times, *shape) if each["model"] == model]


def _shape(name: str) -> tuple[int, int]:
    rows, length = name.split("x")
    return int(rows), int(length)


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}"


def _millions(sized: Mapping[str, Any]) -> str:
    return f"{sized['parameters'] / 1e6:.2f}M"


def _share(teacher: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    return teacher["parameters"] / other["parameters"]


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}×"


def _both(time: Mapping[str, Any] | None) -> str:
    if time is None:
        return "-"
    return _ms(time["median_ms"]) + (f" ({_ms(time['p99_ms'])})" if "p99_ms" in time else "")
