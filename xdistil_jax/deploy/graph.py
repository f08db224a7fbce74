"""A graph's file, looked through before onnxruntime gets it: one file, known operators.

ONNX is a protocol buffer, of which only the few fields that matter here are read, so that nothing
but the base install is needed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xdistil_jax.deploy.bundle import BundleError

# Those of ONNX, and onnxruntime's own, which it is built with: none loads a library.
DOMAINS = ("", "ai.onnx", "com.microsoft")
_DEEPEST = 16
# Message -> number of a field -> what it is: another message, a domain, or what is refused.
_DOMAIN, _EXTERNAL, _LOCATION, _FUNCTION = "domain", "external", "location", "function"
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 8: "opset", 25: _FUNCTION},
    "opset": {1: _DOMAIN},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute", 7: _DOMAIN},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: _EXTERNAL, 14: _LOCATION},
}  # fmt: skip
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_graph(path: Path) -> None:
    """Refuse a graph with data in other files, functions of its own, or unknown operators' domains.

    Raises:
        BundleError: naming the file, and what is wrong with it.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            _check(whole, "model", 0, len(whole), 0)
    except ValueError as error:
        raise BundleError(f"{path} is no graph of a student: {error}") from error


def _check(whole: Any, kind: str, start: int, end: int, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    for field, value, stop in _fields(whole, start, end):
        what = _FIELDS[kind].get(field)
        if what is None:
            continue
        if what == _LOCATION and stop is None and not value:
            continue
        if what in (_EXTERNAL, _LOCATION):
            raise ValueError("its weights are in another file")
        if what == _FUNCTION:
            raise ValueError("it brings functions of its own")
        if stop is None:
            raise ValueError(f"a {what} is a number")
        if what != _DOMAIN:
            _check(whole, what, value, stop, depth + 1)
        elif (name := bytes(whole[value:stop][:80]).decode(errors="replace")) not in DOMAINS:
            raise ValueError(f"operators of the domain {name!r}, which is none of {DOMAINS[1:]}")


def _fields(whole: Any, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """(number, value, None) of numbers, (number, first byte, end) of all that has a length."""
    place = start
    while place < end:
        key, place = _varint(whole, place, end)
        wire, stop = key & 7, None
        value = place
        if wire == _VARINT:
            value, place = _varint(whole, place, end)
        elif wire in (_FIXED64, _FIXED32):
            place += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            size, value = _varint(whole, place, end)
            stop = place = value + size
        else:
            raise ValueError(f"a field of wire type {wire}")
        if place > end:
            raise ValueError("a field is longer than what it is in")
        yield key >> 3, value, stop


def _varint(whole: Any, place: int, end: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if place >= end:
            break
        byte = whole[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise ValueError("a number has no end")
