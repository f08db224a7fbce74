"""What a compiled program costs one chip, read from XLA's text: FLOPs, memory traffic, collectives.

XLA's own analysis counts the body of a loop once; here it is multiplied by the loop's trips. A loop
whose trips are known only at run time (the steps of a training call) is counted once, so the
figures of a train step are those of one step.
"""

import re
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
}  # fmt: skip
_KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
# These move no byte: names for a part of another buffer, or bookkeeping.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "after-all",
    "conditional", "partition-id", "replica-id", "iota", "copy-done", "slice-done", "async-done",
    "opt-barrier", "add-dependency",
}  # fmt: skip
_PARTS = ("dynamic-slice", "slice", "gather")


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


class Collective(NamedTuple):
    """A collective: bytes of its result (of a reduce-scatter, its operand) on a chip, and trips."""

    kind: str
    bytes: int
    times: int


class Cost(NamedTuple):
    """What one chip does: FLOPs of matrix products, bytes through HBM, collectives."""

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]


def read_cost(text: str) -> Cost:
    """The cost of a compiled module, ``jax.stages.Compiled.as_text()``."""
    computations, entry = parse(text)
    flops = moved = 0.0
    collectives = []
    for name, times, fused in _walk(computations, entry, 1, False):
        own = computations[name]
        for each in own.values():
            flops += times * _flops(each, own)
            moved += 0 if fused else times * _traffic(each, own, computations)
            kind = each.opcode.removesuffix("-start")
            if kind in _KINDS and not _is_continued(each, own):
                # The compiler spells a reduce-scatter as an all-reduce fused with a slice.
                kind = "reduce-scatter" if fused and "all-reduce-scatter" in name else kind
                collectives.append(Collective(kind, _payload(each, own), times))
    return Cost(flops, moved, tuple(collectives))


def _is_continued(each: Instruction, own: Computation) -> bool:
    """Is this a later link of a collective that runs beside several fusions?

    The instruction stands in each of them; only in the first one it is started.
    """
    starts = (other for other in own.values() if "AsyncCollectiveStart" in other.rest)
    return "chain_id" in each.rest and not any(starts)


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


def _walk(
    computations: dict[str, Computation], name: str, times: int, fused: bool
) -> Iterator[tuple[str, int, bool]]:
    """(computation, how often it runs, is it inside a fusion?), from ``name`` down."""
    yield name, times, fused
    for each in computations[name].values():
        if each.opcode == "while":
            body = re.search(r"body=%?([\w.\-]+)", each.rest)[1]
            trips = trip_count(each, computations) or 1
            yield from _walk(computations, body, times * trips, fused)
        for called in each.calls():
            yield from _walk(computations, called, times, fused or each.opcode == "fusion")


def trip_count(loop: Instruction, computations: dict[str, Computation]) -> int | None:
    """How often the body of a loop runs; None if only the run will tell.

    Loops count from 0 up to what their condition compares with: those of jax in steps of 1, the
    compiler's own, where a product waits for one part of a matrix after the other, in steps of 2.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = computations[re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]]
    body = computations[re.search(r"body=%?([\w.\-]+)", loop.rest)[1]]
    compared = [condition[name] for name in _root(condition).operands]
    limits = [re.match(r"\((\d+)\)", e.rest) for e in compared if e.opcode == "constant"]
    counters = [re.search(r"index=(\d+)", e.rest) for e in compared if "index=" in e.rest]
    if not limits or not counters:
        return None
    return -(-int(limits[0][1]) // _step(body, int(counters[0][1])))


def _step(body: Computation, place: int) -> int:
    """By how much the body of a loop raises its counter, which is at ``place`` of its tuple."""
    at, step = body[_root(body).operands[place]], 0
    while at.opcode in ("add", "copy"):
        each = [body[name] for name in at.operands]
        step += sum(int(re.match(r"\((\d+)", e.rest)[1]) for e in each if e.opcode == "constant")
        at = next(e for e in each if e.opcode != "constant")
    return step or 1


def _root(computation: Computation) -> Instruction:
    return next(each for each in computation.values() if each.root)


def _flops(each: Instruction, own: Computation) -> float:
    """2 · multiplications of a dot or a convolution; 0 for all else."""
    if each.opcode == "dot":
        left = own[each.operands[0]].leaves[0].shape
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.rest)[1]
        contracted = prod(left[int(axis)] for axis in axes.split(",") if axis)
        return 2.0 * prod(each.leaves[0].shape) * contracted
    if each.opcode != "convolution":
        return 0.0
    left, right, out = (
        own[each.operands[0]].leaves[0].shape,
        own[each.operands[1]].leaves[0].shape,
        each.leaves[0].shape,
    )
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.rest)
    window = _window(each.rest)
    hits = 1
    for place, label in enumerate(c for c in sorted(labels[1]) if c.isdigit()):
        sizes = left[labels[1].index(label)], out[labels[3].index(label)]
        hits *= _hits(*sizes, *(window.get(n, {}).get(place) for n in _FIELDS))
    plain = out[labels[3].index("b")] * out[labels[3].index("f")] * right[labels[2].index("i")]
    return 2.0 * hits * plain


_FIELDS = ("size", "stride", "pad", "lhs_dilate", "rhs_dilate")


def _window(rest: str) -> dict[str, dict[int, str]]:
    """``window={size=128x12 pad=127_127x11_11}`` -> field -> axis -> value."""
    found = re.search(r"window=\{([^}]*)\}", rest)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}
    return {name: dict(enumerate(text.split("x"))) for name, text in fields.items()}


def _hits(
    inputs: int,
    outputs: int,
    size: str | None,
    stride: str | None,
    pad: str | None,
    base: str | None,
    dilation: str | None,
) -> int:
    """(place of the output, place in the window) pairs that meet an element of the input.

    A product over a batch is a convolution here, whose dilated input is met once in a window.
    """
    step, spread, apart = int(stride or 1), int(dilation or 1), int(base or 1)
    low = int((pad or "0_0").split("_")[0])
    end = (inputs - 1) * apart
    places = (
        place * step + within * spread - low
        for place in range(outputs)
        for within in range(int(size or 1))
    )
    return sum(0 <= at <= end and at % apart == 0 for at in places)


def _payload(each: Instruction, own: Computation) -> int:
    given = sum(leaf.bytes for name in each.operands for leaf in own[name].leaves)
    made = sum(leaf.bytes for leaf in each.leaves)
    if each.opcode.endswith("-start") and each.opcode != "all-reduce-start":
        made -= given  # Operand and result stand in one tuple.
    return max(given, made)


def _traffic(each: Instruction, own: Computation, computations: dict[str, Computation]) -> int:
    """Bytes that an instruction outside of fusions moves through HBM."""
    if each.opcode in _FREE or each.opcode.endswith("-done"):
        return 0
    if each.opcode == "custom-call" and "Bitcast" in each.rest:
        return 0
    if each.opcode == "copy-start":
        return each.leaves[0].traffic + each.leaves[1].traffic
    if each.opcode == "slice-start":
        source, part = each.leaves[0], each.leaves[1]
        return (0 if source.space else part.bytes) + part.traffic
    if each.opcode == "fusion":
        inner = computations[each.calls()[0]]
        read = sum(_read(inner, name, computations) for name in _parameters(inner))
        return read + _written(inner)
    return sum(_of_one(each, own, at) for at in range(len(each.operands))) + _made(each, own)


def _parameters(computation: Computation) -> list[str]:
    """Names, in the order in which operands are passed."""
    found = [each for each in computation.values() if each.opcode == "parameter"]
    return [each.name for each in sorted(found, key=lambda e: int(re.match(r"\((\d+)", e.rest)[1]))]


def _of_one(each: Instruction, own: Computation, at: int) -> int:
    """Bytes that ``each`` reads of its operand ``at``."""
    operand = own[each.operands[at]].leaves
    if each.opcode in _PARTS and at == 0:
        return 0 if operand[0].space else each.leaves[0].bytes
    if each.opcode in ("dynamic-update-slice", "scatter") and at == 0:
        return 0
    return sum(leaf.traffic for leaf in operand)


def _made(each: Instruction, own: Computation) -> int:
    if each.opcode in ("dynamic-update-slice", "scatter"):
        update = own[each.operands[1 if each.opcode[0] == "d" else 2]].leaves[0]
        return 0 if each.leaves[0].space else update.bytes
    return sum(leaf.traffic for leaf in each.leaves)


def _read(inner: Computation, name: str, computations: dict[str, Computation]) -> int:
    """Bytes that a fusion reads of its parameter: all of it, or the parts that are cut out."""
    given, parts = inner[name], 0
    for user in inner.values():
        handed_on = user.root and user.opcode == "tuple"
        if name not in user.operands or handed_on or "chain_id" in user.rest:
            continue
        if user.opcode == "bitcast":
            parts += _read(inner, user.name, computations)
        elif user.opcode == "fusion":
            within = computations[user.calls()[0]]
            named = _parameters(within)[user.operands.index(name)]
            parts += _read(within, named, computations)
        elif user.opcode in (*_PARTS, "dynamic-update-slice", "scatter"):
            parts += _of_one(user, inner, user.operands.index(name))
        else:
            return sum(leaf.traffic for leaf in given.leaves)
    return min(parts, sum(leaf.traffic for leaf in given.leaves))


def _written(inner: Computation) -> int:
    root = _root(inner)
    if root.opcode == "tuple":
        made = [_behind(inner, name) for name in root.operands]
        made = [e for e in made if e.opcode != "parameter" and "chain_id" not in e.rest]
        return sum(_made(each, inner) for each in made)
    return _made(_behind(inner, root.name), inner)


def _behind(inner: Computation, name: str) -> Instruction:
    """What a bitcast is another name for."""
    while inner[name].opcode == "bitcast":
        name = inner[name].operands[0]
    return inner[name]
