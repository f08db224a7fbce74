"""Which train sentences keep their labels, and which of these decide when training stops."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xdistil_jax.data.readers import Sentence
from xdistil_jax.data.sources import CorpusError
from xdistil_jax.data.spool import places, sample, spool

if TYPE_CHECKING:
    from jaxtyping import Int8

STOPPING_SHARE = 0.2
"""Of the labels of a language, where they are so few that dev would be out of proportion."""

_TEXT, _TRAIN, _STOPPING = range(3)


class Allotted(NamedTuple):
    """A train set, divided: ``train`` has labels to learn from, ``text`` has lost them.

    ``stopping`` decides when to stop; ``notes`` say to readers of figures what was done.
    """

    train: Sequence[Sentence]
    stopping: tuple[Sentence, ...]
    text: Iterable[Sentence]
    notes: tuple[str, ...] = ()


def allot(
    train: Sequence[Sentence],
    dev: tuple[Sentence, ...],
    *,
    labels: int | None = None,
    share: float | None = None,
    withheld: tuple[str, ...] = (),
    seed: int = 0,
    folder: Path | None = None,
) -> Allotted:
    """Divide ``train``: of each language ``labels`` sentences keep their tags (None: all).

    Those that ``draw`` would give: a language's depend on ``seed`` and its own sentences only, and
    fewer labels are some of more. Of these a ``share`` decides when to stop (None: 0.2 where
    ``labels`` is given, else 0), in the order drawn every fifth, so that these are nested, too. For
    a share of 0 it is ``dev``. Labels of ``withheld`` languages are in neither.

    Raises:
        CorpusError: for numbers that are out of range or leave one of the parts empty, and for
            languages that aren't there.
    """
    if labels is not None and labels < 1:
        raise CorpusError(f"data.labels_per_language is {labels}: expected 1 or more")
    if share is None:
        share = 0.0 if labels is None else STOPPING_SHARE
    if not 0.0 <= share < 1.0:
        raise CorpusError(f"data.dev_from_train is {share:g}: expected a share, 0 or more, below 1")
    if labels is None and not share and not withheld:
        return Allotted(train, dev, ())
    if withheld:
        _check_withheld(withheld, chain(train, dev))
    kinds = _kinds(train, len(train) if labels is None else labels, share, seed, withheld)
    if not (kinds == _TRAIN).any():
        raise CorpusError("data.zero_shot leaves no language with labels: name fewer")
    carved = tuple(_of(train, kinds, _STOPPING))
    stopping = carved if share else tuple(each for each in dev if each.language not in withheld)
    if not stopping:
        raise CorpusError(
            "nothing is left that decides when to stop: "
            f"data.dev_from_train takes {share:g} of {labels or 'all'} labels for each language, "
            "and data.zero_shot all that dev has; raise the one or name fewer of the others"
        )
    return Allotted(
        spool(_of(train, kinds, _TRAIN), folder),
        stopping,
        _of(train, kinds, _TEXT),
        tuple(_told(labels, withheld, len(carved))),
    )


def _check_withheld(withheld: tuple[str, ...], labelled: Iterable[Sentence]) -> None:
    known = {sentence.language for sentence in labelled}
    if strange := set(withheld) - known:
        raise CorpusError(
            f"data.zero_shot names {', '.join(sorted(strange))}, but train and dev are in "
            f"{', '.join(sorted(known))}: name some of these"
        )


def _told(labels: int | None, withheld: tuple[str, ...], carved: int) -> Iterator[str]:
    if withheld:
        yield f"Zero-shot: no label of {', '.join(withheld)} was seen in training."
    if labels is not None:
        yield f"Labels: {labels:,} sentences for each language."
    if carved:
        yield (
            f"{carved:,} labelled sentences of train, on which nothing was trained, decided when "
            "to stop; dev did not."
        )


def _kinds(
    train: Sequence[Sentence], labels: int, share: float, seed: int, withheld: Collection[str]
) -> Int8[np.ndarray, "N"]:
    drawn = places(train, labels, seed)
    kinds = np.full(len(train), _TEXT, np.int8)
    for language, where in drawn.items():
        if language in withheld:
            continue
        before = np.floor(np.arange(len(where) + 1) * share)
        kinds[where] = np.where(np.diff(before) > 0, _STOPPING, _TRAIN)
    return kinds


def _of(train: Iterable[Sentence], kinds: Int8[np.ndarray, "N"], wanted: int) -> Iterator[Sentence]:
    return (each for each, kind in zip(train, kinds, strict=True) if kind == wanted)


def first_of(
    parts: Iterable[Iterable[Sentence]], limit: int | None, seed: int, folder: Path | None = None
) -> Iterator[Sentence]:
    """The sentences of all ``parts``, at most ``limit``: of the part in which it falls, a sample.

    What comes after is not read.
    """
    for part in parts:
        if limit is None:
            yield from part
            continue
        for sentence in sample(part, limit, seed, folder):
            limit -= 1
            yield sentence
        if not limit:
            return
