"""Readers: files and data sets -> sentences. Every complaint names file and line."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from xdistil_jax.data import formats, tables
from xdistil_jax.data.formats import Fault, Raw
from xdistil_jax.data.record import PAIR as PAIR
from xdistil_jax.data.record import UNDETERMINED as UNDETERMINED
from xdistil_jax.data.record import Sentence
from xdistil_jax.data.sources import SPLITS, CorpusError, Lines, language_of, missing
from xdistil_jax.labels import OUTSIDE, TagSet, repair, split_tag

FORMATS = ("auto", *formats.PARSERS, "datasets")
SAMPLE = 400
_PLACES = 5
Rule = Callable[[tuple[str, ...]], tuple[tuple[str, ...], int]]
"""Labels as written -> valid ones, and how many were repaired; may raise UnknownLabelError."""


@dataclass
class ReadLog:
    """What a reading has met: counted, not hidden."""

    sentences: int = 0
    repaired: int = 0
    """Tags that were IOB1 or a stray I-, and became B-."""
    skipped: int = 0
    """Sentences that could not be used, with ``on_mismatch="skip"``."""
    skipped_places: list[str] = field(default_factory=list)
    """The first of them: file, line and reason."""
    dropped: int = 0
    """Transfer sentences that also stand in dev."""
    notes: list[str] = field(default_factory=list)

    def skip(self, place: str) -> None:
        """Count a sentence that is left out."""
        self.skipped += 1
        if len(self.skipped_places) < _PLACES:
            self.skipped_places.append(place)


class UnknownLabelError(ValueError):
    """A tag or class that can't be used, and how many words before it can."""

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(problem)
        self.position = position


def _tag_rule(tag_map: Mapping[str, str], tagset: TagSet | None) -> Rule:
    """Tags as written -> valid IOB2 of the wanted types, and how many were repaired."""

    def renamed(position: int, tag: str) -> str:
        prefix, kind = split_tag(tag)
        kind = tag_map.get(kind, kind)
        if not kind or kind == OUTSIDE:
            return OUTSIDE
        if tagset and kind not in tagset.types:
            problem = (
                f"tag {tag!r} is none of the types {', '.join(tagset.types)} (data.types); a tag "
                "map can give it one of these names, or O"
            )
            raise UnknownLabelError(position, problem)
        return f"{prefix}-{kind}"

    # Data sets repeat the same few tag sequences over and over.
    @lru_cache(maxsize=1 << 16)
    def rule(tags: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
        tags = tuple(tag.strip() for tag in tags)
        for position, tag in enumerate(tags):
            try:
                split_tag(tag)
            except ValueError as error:
                raise UnknownLabelError(position, str(error)) from None
        # Repaired first: what is a stray I- depends on the types as they were annotated.
        tags, changed = repair(tags)
        return tuple(renamed(position, tag) for position, tag in enumerate(tags)), changed

    return rule


class Source(NamedTuple):
    """What is read of a file or data set; ``broken`` are lines that aren't UTF-8."""

    name: str
    unit: str
    items: Iterator[Raw | Fault]
    broken: set[int]
    language: str


def _open_source(source: Any, format: str, split: str) -> Source:
    if format == "datasets" or (format == "auto" and tables.is_table(source)):
        items = tables.rows(source, split)
        return Source(tables.name_of(source), "row", items, set(), tables.language_of(source))
    path = Path(source)
    if not path.is_file():
        raise missing(path)
    lines = Lines(path)
    rest = iter(lines)
    head = list(islice(rest, SAMPLE))
    if not head:
        raise CorpusError(f"{path}: the file is empty; expected sentences")
    parser = formats.PARSERS[formats.detect(head) if format == "auto" else format]
    return Source(str(path), "line", parser(chain(head, rest)), lines.broken, language_of(path))


def _not_utf8(line: int) -> Fault:
    return Fault(line, "bytes that are not UTF-8; convert the file (iconv -f LATIN1 -t UTF-8)")


def _settle(
    item: Raw | Fault, source: Source, rule: Rule
) -> tuple[tuple[str, ...] | None, int] | Fault:
    """The valid tags of a sentence and how many of them were repaired, or why it has none."""
    if source.broken:
        first, count = item.line, item.lines if isinstance(item, Raw) else 1
        if hits := source.broken.intersection(range(first, first + count)):
            source.broken.difference_update(hits)
            return _not_utf8(min(hits))
    if isinstance(item, Fault):
        return item
    if item.tags is None:
        return None, 0
    try:
        return rule(item.tags)
    except UnknownLabelError as error:
        line = item.line + (error.position if item.lines > 1 else 0)
        return Fault(line, str(error))


def read(
    source: Any,
    *,
    format: str = "auto",
    language: str | None = None,
    on_mismatch: str = "error",
    tag_map: Mapping[str, str] | None = None,
    tagset: TagSet | None = None,
    limit: int | None = None,
    log: ReadLog | None = None,
    split: str = "train",
) -> Iterator[Sentence]:
    """The sentences of a file (plain or gzip), or of one split of a Hugging Face data set.

    Args:
        source: a path; ``hf:OWNER/NAME`` or ``hf:OWNER/NAME:CONFIGURATION``; or a loaded data set.
        format: one of ``FORMATS``; ``auto`` looks at the content.
        language: of sentences that don't tell theirs; else the name of file or folder tells it.
        on_mismatch: ``error``, or ``skip`` to count sentences that can't be used and go on.
        tag_map: new names of entity types; a type that becomes ``O`` is no entity.
        tagset: tags of other types are unknown; None allows every type.
        limit: the first sentences only.
        log: counts what was met, and is added to.
        split: of a data set: train, dev or test.

    Raises:
        CorpusError: naming file and line, what was expected and what to do.
    """
    check_choice("format", format, FORMATS)
    check_choice("on_mismatch", on_mismatch, ("error", "skip"))
    check_choice("split", split, tuple(SPLITS))
    opened = _open_source(source, format, split)
    rule = _tag_rule(tag_map or {}, tagset)
    language = language or opened.language or UNDETERMINED
    skip = on_mismatch == "skip"
    return islice(sentences_of(opened, rule, language, log or ReadLog(), skip=skip), limit)


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")


def sentences_of(
    source: Source, rule: Rule, language: str, log: ReadLog, *, skip: bool
) -> Iterator[Sentence]:
    """What ``source`` holds, its labels settled by ``rule``; faults are raised, or counted.

    Raises:
        CorpusError: naming file and line.
    """

    def leave_out(fault: Fault) -> None:
        place = f"{source.name}, {source.unit} {fault.line}: {fault.problem}"
        if not skip:
            raise CorpusError(f"{place}; correct it, or leave it out with on_mismatch=skip")
        log.skip(place)

    before = log.sentences
    for item in source.items:
        settled = _settle(item, source, rule)
        if isinstance(settled, Fault):
            leave_out(settled)
            continue
        tags, repaired = settled
        log.sentences += 1
        log.repaired += repaired
        yield Sentence(tuple(item.words), tags, item.language or language)
    for line in sorted(source.broken):
        leave_out(_not_utf8(line))
    if log.sentences == before:
        first = f"; the first problem: {log.skipped_places[-1]}" if log.skipped_places else ""
        raise CorpusError(f"{source.name}: no usable sentence in it{first}")
