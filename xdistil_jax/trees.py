"""Parameter trees: paths, patterns over them, and the split into a trained and a frozen part.

A path joins the keys of nested dicts: ``bilstm/forward/kernel``. A pattern is a path prefix
(``bilstm`` covers everything below it) or a glob (``layer_*/attention``).
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from jaxtyping import PyTree


class PatternError(ValueError):
    """A pattern that matches nothing, or a parameter that isn't covered by exactly one rule."""


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) in sorted order; holes (None) are passed over."""
    for key in sorted(tree):
        path, value = f"{prefix}{key}", tree[key]
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}/")
        elif value is not None:
            yield path, value


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose ``leaves`` are ``flat``."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def matches(pattern: str, path: str) -> bool:
    """Does ``pattern`` cover ``path``, itself or through one of its parents?"""
    return path.startswith(f"{pattern}/") or any(
        fnmatchcase(path, glob) for glob in (pattern, f"{pattern}/*")
    )


def mask(tree: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    """The boolean tree of the leaves that any pattern covers.

    Raises:
        PatternError: for a pattern that matches nothing, with the nearest paths.
    """
    known = [path for path, _ in leaves(tree)]
    for pattern in patterns:
        if not any(matches(pattern, path) for path in known):
            raise PatternError(_nothing_matches(pattern, known))
    return unflatten({path: any(matches(p, path) for p in patterns) for path in known})


def _nothing_matches(pattern: str, known: Sequence[str]) -> str:
    parents = {"/".join(path.split("/")[: depth + 1]) for path in known for depth in range(4)}
    near = difflib.get_close_matches(pattern, sorted(parents), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"the paths are {', '.join(known[:12])}"
    return f"pattern {pattern!r} matches no parameter: {hint}"


def assign(tree: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, str]:
    """path -> the one pattern that covers it.

    Raises:
        PatternError: for a pattern that matches nothing, a parameter that no pattern covers,
            and a parameter that several cover.
    """
    mask(tree, patterns)
    return {path: covering(path, patterns) for path, _ in leaves(tree)}


def covering(path: str, patterns: Sequence[str]) -> str:
    """The one pattern that covers ``path``.

    Raises:
        PatternError: if none does, or several do.
    """
    found = [pattern for pattern in patterns if matches(pattern, path)]
    if len(found) != 1:
        said = " and ".join(found) if found else "no pattern"
        raise PatternError(f"parameter {path!r} is covered by {said}; exactly one must")
    return found[0]


def partition(
    tree: Mapping[str, Any], chosen: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split ``tree`` by the boolean tree ``chosen``: (True, False), None in the holes."""
    inside: dict[str, Any] = {}
    outside: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            inside[key], outside[key] = partition(value, chosen[key])
        else:
            inside[key], outside[key] = (value, None) if chosen[key] else (None, value)
    return inside, outside


def combine(left: PyTree, right: PyTree) -> PyTree:
    """Undo ``partition``: each leaf from whichever tree has it."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return {key: combine(left.get(key), right.get(key)) for key in {**left, **right}}
    return right if left is None else left


def describe(chosen: Mapping[str, Any]) -> str:
    """A boolean tree as text, a line for each parameter: ``x`` trained, ``.`` frozen."""
    return "\n".join(f"{'x' if value else '.'} {path}" for path, value in leaves(chosen))
