"""What a bundle's JSON says, held to bounds and to the weights before anything is made of it.

A bundle may come from anyone: sizes, names and choices are believed only within these limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from xdistil_jax.labels import ClassSet, Labels, TagSet

if TYPE_CHECKING:
    import numpy as np

_LONGEST = 1 << 16
"""Pieces of a row."""
_SIZE = 1 << 24
_LAYERS, _CLASSES, _TAGS, _NAME = 256, 10_000, 128, 200

Sizes = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]


def check_config(config: Mapping[str, Any]) -> None:
    """Fields that every bundle has.

    Raises:
        ValueError: naming the field, what was expected, and what was found.
    """
    _choice(config, "kind", *_SHAPES)
    _whole(config, "max_length", 3, _LONGEST)
    _choice(config, "decoding", "iob2", "argmax")
    if not isinstance(config.get("pairs"), bool | None):
        raise _wrong(config, "pairs", "true or false, or nothing")
    if not isinstance(config.get("sizes"), dict):
        raise _wrong(config, "sizes", "an object")
    temperature = config.get("temperature", 1.0)
    if not _is_number(temperature) or not 0.001 <= temperature <= 1000:
        raise _wrong(config, "temperature", "a number from 0.001 to 1000")
    sums = config.get("checksums")
    if not isinstance(sums, dict) or not all(isinstance(each, str) for each in sums.values()):
        raise _wrong(config, "checksums", "an object: file to checksum")
    for name in sums:
        if not name or name.startswith(".") or set(name) & set("/\\:\0"):
            raise ValueError(f"checksums: {name!r:.80} is no name of a file in this folder")


def read_labels(content: Any) -> Labels:
    """labels.json, parsed -> types of tags, or classes.

    Raises:
        ValueError: for names that are no strings, empty, repeated, or too many.
    """
    kind, field, most = TagSet, "types", (_TAGS - 1) // 2
    if isinstance(content, dict) and "classes" in content:
        kind, field, most = ClassSet, "classes", _CLASSES
    names = content.get(field) if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(
        isinstance(name, str) and 0 < len(name) <= _NAME for name in names
    ):
        raise ValueError(f"expected an object with {field}: a list of names")
    if len(set(names)) < len(names) or len(names) > most or (kind is ClassSet and not names):
        raise ValueError(f"{field}: expected distinct names, at most {most}; found {len(names)}")
    return kind(tuple(names))


def check_shapes(
    config: Mapping[str, Any], labels: Labels, pieces: int, weights: Mapping[str, np.ndarray]
) -> None:
    """The weights are those of a student of these sizes, with a row for each of the pieces.

    Raises:
        ValueError: naming the size that is out of bounds, or the tensors that don't fit.
    """
    wanted = expected_shapes(config, labels, pieces)
    odd = [
        f"{path} {weights[path].shape if path in weights else 'is missing'}, expected {shape}"
        for path, shape in wanted.items()
        if path not in weights or weights[path].shape != shape or weights[path].dtype.char != "f"
    ]
    if odd:
        more = ", …" if len(odd) > 4 else ""
        raise ValueError(f"the weights don't fit the sizes: {'; '.join(odd[:4])}{more}")


def expected_shapes(config: Mapping[str, Any], labels: Labels, pieces: int) -> Shapes:
    """Path -> shape of all fp32 weights that the student's forward pass reads.

    Raises:
        ValueError: naming the size that is out of bounds.
    """
    sizes = config["sizes"]
    whole = sizes.get("encoder") if config["kind"] == "transformer" else sizes
    if not isinstance(whole, dict):
        raise _wrong(sizes, "encoder", "an object")
    if _whole(whole, "classes", 1, _CLASSES) != len(labels):
        raise ValueError(f"classes is {whole['classes']}, but labels.json has {len(labels)}")
    if _whole(whole, "vocab_size", 1, _SIZE) < pieces:
        raise ValueError(f"vocab_size is {whole['vocab_size']}, the tokenizer's {pieces}")
    return _SHAPES[config["kind"]](whole, config["max_length"])


def _bilstm(sizes: Sizes, longest: int) -> Shapes:
    embed, hidden, width, classes, pieces = (
        _whole(sizes, name, 1, _SIZE)
        for name in ("embed", "hidden", "teacher_width", "classes", "vocab_size")
    )
    _choice(sizes, "projection", "gelu", "linear")
    _choice({"pool": "none", **sizes}, "pool", "none", "last", "max")
    top = {"projection": width, "bilstm": 2 * hidden}
    return {
        "embed/table": (pieces, embed),
        "bilstm/kernel": (2, embed, 4 * hidden),
        "bilstm/recurrent": (2, hidden, 4 * hidden),
        "bilstm/bias": (2, 4 * hidden),
        **_dense("projection", 2 * hidden, width),
        **_dense("head", top[_choice(sizes, "head_on", *top)], classes),
    }


def _transformer(sizes: Sizes, longest: int) -> Shapes:
    width, inner, classes, pieces = (
        _whole(sizes, name, 1, _SIZE) for name in ("width", "feed_forward", "classes", "vocab_size")
    )
    offset = _whole(sizes, "position_offset", 0, _LONGEST)
    positions = _whole(sizes, "positions", offset + longest, _SIZE)
    own = _whole(sizes, "embedding_width", 0, _SIZE) or width
    types = _whole(sizes, "token_types", 0, 16)
    _whole({"separator": -1, **sizes}, "separator", -1, _SIZE)
    if sizes.get("separator", -1) >= 0 and types == 1:
        raise ValueError("separator: expected -1 where token_types is 1")
    if width % _whole(sizes, "heads", 1, width):
        raise ValueError(f"heads is {sizes['heads']}: expected a divisor of width {width}")
    _choice(sizes, "activation", "gelu", "gelu_tanh", "relu")
    epsilon, pre_norm = sizes.get("norm_epsilon"), sizes.get("pre_norm")
    if not _is_number(epsilon) or not 0 < epsilon < 1:
        raise _wrong(sizes, "norm_epsilon", "a number between 0 and 1")
    if not isinstance(pre_norm, bool):
        raise _wrong(sizes, "pre_norm", "true or false")
    shapes = {
        "embed/table": (pieces, own),
        "embed/positions": (positions, own),
        **({"embed/types": (types, own)} if types else {}),
        **(_norm("norm", width) if pre_norm else _norm("embed/norm", own)),
        **(_dense("embed/projection", own, width) if own != width else {}),
        **_dense("head", width, classes),
    }
    for number in range(1, 1 + _whole(sizes, "layers", 1, _LAYERS)):
        path = f"layer_{number}"
        for name in ("query", "key", "value", "output"):
            shapes |= _dense(f"{path}/attention/{name}", width, width)
        shapes |= _dense(f"{path}/feed_forward/up", width, inner)
        shapes |= _dense(f"{path}/feed_forward/down", inner, width)
        shapes |= _norm(f"{path}/attention/norm", width) | _norm(f"{path}/feed_forward/norm", width)
    return shapes


_SHAPES: dict[str, Callable[[Sizes, int], Shapes]] = {
    "bilstm": _bilstm,
    "transformer": _transformer,
}


def _dense(path: str, before: int, after: int) -> Shapes:
    return {f"{path}/kernel": (before, after), f"{path}/bias": (after,)}


def _norm(path: str, width: int) -> Shapes:
    return {f"{path}/scale": (width,), f"{path}/bias": (width,)}


def _whole(fields: Sizes, name: str, least: int, most: int) -> int:
    number = fields.get(name)
    if type(number) is not int or not least <= number <= most:
        raise _wrong(fields, name, f"an integer from {least} to {most}")
    return number


def _choice(fields: Sizes, name: str, *choices: str) -> str:
    if not isinstance(chosen := fields.get(name), str) or chosen not in choices:
        raise _wrong(fields, name, f"one of {', '.join(choices)}")
    return chosen


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _wrong(fields: Sizes, name: str, wanted: str) -> ValueError:
    return ValueError(f"{name}: expected {wanted}, found {fields.get(name)!r:.80}")
