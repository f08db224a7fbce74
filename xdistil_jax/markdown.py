"""Tables of Markdown."""

from collections.abc import Sequence


def line(cells: Sequence[str]) -> str:
    """One row of a table; a bar within a cell stays within it."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    return "\n".join([line(head), "|---|" + "---:|" * (len(head) - 1), *map(line, rows)])
