"""XLA's text of a compiled program, read: computations, their instructions, the trips of loops."""

import re
from math import prod
from typing import NamedTuple

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")


class Leaf(NamedTuple):
    """An array in a type: its dtype, its axes, and the memory it lies in (0: the chip's HBM)."""

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * _BITS.get(self.dtype, 0) // 8

    @property
    def traffic(self) -> int:
        """Bytes that go through HBM when the array is read or written whole."""
        return 0 if self.space else self.bytes


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    leaves: tuple[Leaf, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    def calls(self) -> tuple[str, ...]:
        """Computations that run when this instruction does, loops apart."""
        if self.opcode in ("fusion", "call", "async-start"):
            return tuple(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", self.rest))
        if self.opcode == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
            either = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.rest)
            return tuple(re.findall(r"%?([\w.\-]+)", listed[1])) if listed else tuple(either)
        return ()


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """(name -> computation, name of the entry)."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if line[:1] not in (" ", "}", "") and (header := _HEADER.match(line)):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            made = _instruction(found, line[found.end() :])
            current[made.name] = made
    return computations, entry


def _instruction(found: re.Match[str], line: str) -> Instruction:
    end = _closing(line, 0) + 1 if line[0] == "(" else line.index(" ")
    opcode, _, _ = line[end:].partition("(")
    start = end + len(opcode)
    stop = _closing(line, start)
    operands = tuple(re.findall(r"%([\w.\-]+)", line[start:stop]))
    leaves = tuple(
        Leaf(dtype, tuple(map(int, filter(None, shape.split(",")))), _space(layout))
        for dtype, shape, layout in _ARRAY.findall(line[:end])
    )
    opcode = opcode.strip()
    numbered = opcode in ("constant", "parameter")
    rest = line[start if numbered else stop + 1 :]
    return Instruction(found[2], leaves, opcode, operands, rest, bool(found[1]))


def _closing(line: str, start: int) -> int:
    """Where the parenthesis that opens at ``start`` closes."""
    depth = 0
    for place in range(start, len(line)):
        depth += (line[place] == "(") - (line[place] == ")")
        if not depth:
            return place
    raise ValueError(f"a parenthesis isn't closed: {line[:80]}")


def _space(layout: str) -> int:
    found = re.search(r"S\((\d+)\)", layout)
    return int(found[1]) if found else 0


def trip_count(loop: Instruction, computations: dict[str, Computation]) -> int | None:
    """How often the body of a loop runs; None if only the run will tell.

    Loops count from 0 up to what their condition compares with: those of jax in steps of 1, the
    compiler's own, where a product waits for one part of a matrix after the other, in steps of 2.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = computations[re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]]
    body = computations[re.search(r"body=%?([\w.\-]+)", loop.rest)[1]]
    compared = [condition[name] for name in root_of(condition).operands]
    limits = [re.match(r"\((\d+)\)", e.rest) for e in compared if e.opcode == "constant"]
    counters = [re.search(r"index=(\d+)", e.rest) for e in compared if "index=" in e.rest]
    if not limits or not counters:
        return None
    return -(-int(limits[0][1]) // _step(body, int(counters[0][1])))


def _step(body: Computation, place: int) -> int:
    """By how much the body of a loop raises its counter, which is at ``place`` of its tuple."""
    at, step = body[root_of(body).operands[place]], 0
    while at.opcode in ("add", "copy"):
        each = [body[name] for name in at.operands]
        step += sum(int(re.match(r"\((\d+)", e.rest)[1]) for e in each if e.opcode == "constant")
        at = next(e for e in each if e.opcode != "constant")
    return step or 1


def root_of(computation: Computation) -> Instruction:
    """The instruction whose result is the computation's."""
    return next(each for each in computation.values() if each.root)
