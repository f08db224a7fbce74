"""What runs have compiled, as a table: programs, how often, and the seconds."""

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = ["program", "compiled", "found on disk", "seconds"]
_SHOWN = 12


def rows(reports: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What was compiled in runs, longest first; the programs after the first few in one line."""
    sums: dict[str, list[float]] = {}
    for report in reports:
        # A report of an older version has none.
        programs = (report.get("compilations") or {}).get("programs", {})
        for name, each in programs.items():
            values = (each["compiled"], each["found"], each["seconds"])
            sums[name] = [a + b for a, b in zip(sums.get(name, [0, 0, 0.0]), values, strict=True)]
    ordered = sorted(sums.items(), key=lambda item: -item[1][2])
    shown, others = ordered[:_SHOWN], [values for _, values in ordered[_SHOWN:]]
    if others:
        shown.append((f"{len(others)} others", [sum(each) for each in zip(*others, strict=True)]))
    if shown:
        shown.append(("all", [sum(each) for each in zip(*sums.values(), strict=True)]))
    return [
        [name, f"{compiled:,}", f"{found:,}", f"{seconds:.1f}"]
        for name, (compiled, found, seconds) in shown
    ]


def table(*reports: Mapping[str, Any]) -> str:
    """What these runs have compiled, for the terminal; empty if that is nothing."""
    lines = rows(reports)
    if not lines:
        return ""
    width = max(len(line[0]) for line in lines)
    return "\n".join(
        line[0].ljust(width) + "".join(f"  {cell:>13}" for cell in line[1:])
        for line in [HEADER, *lines]
    )
