"""Sentences that lie on disk: a sequence as long as the text, which takes none of the memory."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xdistil_jax.data.arrays import gather
from xdistil_jax.data.readers import Sentence

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8

_BLOCK = 512
# JSON keeps any word as it is; a lone surrogate, too, which UTF-8 by itself refuses.
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_LONE = "surrogatepass"


class Sentences(Sequence[Sentence]):
    """Any sequence of sentences that are made when they are asked for; slices are tuples."""

    def between(self, first: int, last: int) -> Iterator[Sentence]:
        """The sentences from ``first`` up to ``last``, one after the other."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Sentence]:
        return self.between(0, len(self))

    def __getitem__(self, where: Any) -> Any:
        chosen = range(len(self))[where]
        if not isinstance(chosen, range):
            return next(self.between(chosen, chosen + 1))
        if chosen.step == 1:
            return tuple(self.between(chosen.start, chosen.stop))
        return tuple(self[number] for number in chosen)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None


class _Spooled(Sentences):
    """Sentence s is the JSON in ``text[ends[s]:ends[s + 1]]``, with a comma behind it."""

    def __init__(self, text: UInt8[np.ndarray, "N"], ends: Int64[np.ndarray, "S+1"]) -> None:
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def between(self, first: int, last: int) -> Iterator[Sentence]:
        for start in range(first, last, _BLOCK):
            begin, end = self._ends[start], self._ends[min(start + _BLOCK, last)]
            text = self._text[begin : end - 1].tobytes().decode("utf-8", _LONE)
            for words, tags, language in json.loads(f"[{text}]"):
                yield Sentence(tuple(words), None if tags is None else tuple(tags), language)


class _Joined(Sentences):
    """One part after the other."""

    def __init__(self, parts: tuple[Sequence[Sentence], ...]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def between(self, first: int, last: int) -> Iterator[Sentence]:
        for part in self._parts:
            cut = range(len(part))[max(first, 0) : max(last, 0)]
            if isinstance(part, Sentences):
                yield from part.between(cut.start, cut.stop)
            else:
                yield from part[cut.start : cut.stop]
            first, last = first - len(part), last - len(part)


def join(*parts: Sequence[Sentence]) -> Sentences:
    """The sentences of all ``parts``, none of them copied."""
    return _Joined(parts)


def spool(sentences: Iterable[Sentence], folder: Path | None = None) -> Sentences:
    """Put sentences on disk while they are read; the files have no name, see ``arrays.gather``."""
    return _Spooled(**gather(_blocks(sentences), {"text": np.uint8, "ends": np.int64}, folder))


def _blocks(sentences: Iterable[Sentence]) -> Iterator[dict[str, np.ndarray]]:
    left, end = iter(sentences), 0
    yield {"text": np.zeros(0, np.uint8), "ends": np.zeros(1, np.int64)}
    while block := [_to_json(sentence).encode("utf-8", _LONE) for sentence in islice(left, _BLOCK)]:
        ends = end + np.cumsum([len(line) + 1 for line in block])
        end = ends[-1]
        yield {"text": np.frombuffer(b",".join([*block, b""]), np.uint8), "ends": ends}


class _Urn:
    """The ``limit`` lowest of the numbers that one language has drawn, and whose they are."""

    def __init__(self, limit: int, seed: str) -> None:
        self._limit, self._dice = limit, random.Random(seed)
        self._numbers, self._owners = array("d"), array("q")
        self._bound = 1.0 if limit else 0.0

    def accepts(self, owner: int) -> bool:
        """Draw a number for ``owner``: is it among the lowest so far?"""
        number = self._dice.random()
        if number >= self._bound:
            return False
        self._numbers.append(number)
        self._owners.append(owner)
        if len(self._numbers) >= 2 * self._limit + _BLOCK:
            self._cut()
        return True

    def _cut(self) -> None:
        owners, numbers = self.lowest()
        self._owners, self._numbers = array("q", owners.tobytes()), array("d", numbers.tobytes())
        self._bound = float(numbers[-1])

    def lowest(self) -> tuple[np.ndarray, np.ndarray]:
        """(owners, numbers) from the lowest on; of equal numbers the first owner comes first."""
        numbers = np.array(self._numbers)
        order = np.argsort(numbers, kind="stable")[: self._limit]
        return np.array(self._owners)[order], numbers[order]


def draw(
    sentences: Iterable[Sentence], limit: int, seed: int, folder: Path | None = None
) -> Iterator[Sentence]:
    """The first ``limit`` of each language after a shuffle; a smaller limit gives a beginning.

    Only sentences that may be among them are spooled. Python promises the numbers of ``random()``
    for ever.
    """
    urns = _Urns(limit, seed)
    spooled = spool(_candidates(sentences, lambda each: urns[each.language]), folder)
    owners = chain.from_iterable(urn.lowest()[0].tolist() for urn in urns.values())
    return (spooled[owner] for owner in owners)


def places(
    sentences: Iterable[Sentence], limit: int, seed: int
) -> dict[str, Int64[np.ndarray, "N"]]:
    """Language -> where those that ``draw`` gives of it stand in ``sentences``, in its order."""
    urns = _Urns(limit, seed)
    for place, sentence in enumerate(sentences):
        urns[sentence.language].accepts(place)
    return {language: urn.lowest()[0] for language, urn in urns.items()}


def sample(
    sentences: Iterable[Sentence], limit: int, seed: int, folder: Path | None = None
) -> Iterator[Sentence]:
    """``limit`` of all sentences, whatever their languages, in their order.

    A smaller limit gives a part of what a larger one gives; only candidates are spooled.
    """
    urn = _Urn(limit, f"{seed}")
    spooled = spool(_candidates(sentences, lambda each: urn), folder)
    return (spooled[owner] for owner in sorted(urn.lowest()[0].tolist()))


class _Urns(dict[str, _Urn]):
    """An urn for each language, made when it is first asked for."""

    def __init__(self, limit: int, seed: int) -> None:
        super().__init__()
        self._limit, self._seed = limit, seed

    def __missing__(self, language: str) -> _Urn:
        self[language] = _Urn(self._limit, f"{self._seed} {language}")
        return self[language]


def _candidates(
    sentences: Iterable[Sentence], urn_of: Callable[[Sentence], _Urn]
) -> Iterator[Sentence]:
    """Sentences whose urns accept them, numbered in this order."""
    owner = 0
    for sentence in sentences:
        if urn_of(sentence).accepts(owner):
            owner += 1
            yield sentence
