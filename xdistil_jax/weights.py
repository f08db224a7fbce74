"""Safetensors files read with NumPy alone: nothing is believed that the bytes don't bear out."""

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

DTYPES: Mapping[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
# The format's own limit.
_LONGEST_HEADER = 100_000_000
_METADATA = "__metadata__"


def views(
    content: np.ndarray, dtypes: Mapping[str, Any] = DTYPES
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors by name, metadata) of a file's bytes, uint8 [N]: views, nothing is copied.

    Raises:
        ValueError: for a header that is none, or that doesn't fit the bytes behind it.
    """
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    if not 8 < start <= min(len(content), 8 + _LONGEST_HEADER):
        raise ValueError(f"a header of {start - 8} bytes in a file of {len(content)}")
    try:
        header = json.loads(content[8:start].tobytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the header is no JSON: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get(_METADATA, {}), dict):
        raise ValueError("the header is no JSON object")
    metadata, body = header.pop(_METADATA, {}), content[start:]
    found = {name: _view(name, entry, body, dtypes) for name, entry in header.items()}
    parts = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    edges = [(0, 0), *parts, (len(body), len(body))]
    if any(before[1] != after[0] for before, after in pairwise(edges)):
        raise ValueError("tensors overlap, or bytes belong to none")
    return found, metadata


def _view(name: str, entry: Any, body: np.ndarray, dtypes: Mapping[str, Any]) -> np.ndarray:
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets, kind = (fields.get(each) for each in ("shape", "data_offsets", "dtype"))
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2 and len(shape) <= 32):
        raise ValueError(f"{name}: expected a dtype, a shape and data_offsets, found {entry!r:.80}")
    if not isinstance(kind, str) or kind not in dtypes:
        raise ValueError(f"{name}: dtype {kind!r:.40}, expected one of {', '.join(dtypes)}")
    (first, last), dtype = offsets, np.dtype(dtypes[kind])
    if last > len(body) or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name}: bytes {first} to {last} of {len(body)} for {shape} of {dtype}")
    return body[first:last].view(dtype).reshape(shape)


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(each) is int and each >= 0 for each in numbers)
