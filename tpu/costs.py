"""What a compiled program costs one chip, read from XLA's text: FLOPs, memory traffic, collectives.

XLA's own analysis counts the body of a loop once; here it is multiplied by the loop's trips. A loop
whose trips are known only at run time (the steps of a training call) is counted once, so the
figures of a train step are those of one step.
"""

import re
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from hlo import Computation, Instruction, parse, root_of, trip_count

_KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
# These move no byte: names for a part of another buffer, or bookkeeping.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "after-all",
    "conditional", "partition-id", "replica-id", "iota", "copy-done", "slice-done", "async-done",
    "opt-barrier", "add-dependency",
}  # fmt: skip
_PARTS = ("dynamic-slice", "slice", "gather")


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
    root = root_of(inner)
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
