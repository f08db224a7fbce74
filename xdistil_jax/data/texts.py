"""Readers for classification: texts, or pairs of texts, each with a class -> sentences.

``text<TAB>class`` or ``a<TAB>b<TAB>class``, or a Hugging Face data set. Labels may be words or
integers; the original code's language prefix (``en:1``) is read where all labels have one. Every
complaint names file and line.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from xdistil_jax.data import sources, tables
from xdistil_jax.data.formats import Fault, Raw
from xdistil_jax.data.readers import (
    PAIR,
    SAMPLE,
    UNDETERMINED,
    ReadLog,
    Rule,
    Sentence,
    Source,
    UnknownLabelError,
    check_choice,
    sentences_of,
)
from xdistil_jax.data.sources import SPLITS, CorpusError, Lines, missing
from xdistil_jax.labels import ClassSet
from xdistil_jax.text import words_of

FORMATS = ("auto", "tsv", "datasets")
MOST_CLASSES = 128
"""An encoded store counts labels in eight bits."""

_PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("text1", "text2"),
    ("question1", "question2"), ("question", "sentence"),
)  # fmt: skip
_SINGLE = ("text", "sentence", "content")
_LABELS = ("label", "labels")
_LANGUAGES = ("language", "lang")
_KNOWN = {*chain(*_PAIRS), *_SINGLE, *_LABELS, *_LANGUAGES}
_SHOWN = 12


def read_texts(
    source: Any,
    *,
    labelled: bool = True,
    pairs: bool | None = None,
    format: str = "auto",
    language: str | None = None,
    on_mismatch: str = "error",
    tag_map: Mapping[str, str] | None = None,
    tagset: ClassSet | None = None,
    limit: int | None = None,
    log: ReadLog | None = None,
    split: str = "train",
) -> Iterator[Sentence]:
    """The texts of a file (plain or gzip), or of one split of a Hugging Face data set.

    Args:
        source: as ``readers.read``'s.
        labelled: False reads the words only: the first column, or the first two of pairs.
        pairs: are they pairs? None: the columns of labelled lines tell; others are single texts.
        format: one of ``FORMATS``; ``auto`` looks at the content.
        language: of texts that don't tell theirs; else the name of file or folder tells it.
        on_mismatch: ``error``, or ``skip`` to count texts that can't be used and go on.
        tag_map: new names of classes.
        tagset: other classes are unknown; None allows every one.
        limit: the first texts only.
        log: counts what was met, and is added to.
        split: of a data set: train, dev or test.

    Raises:
        CorpusError: naming file and line, what was expected and what to do.
    """
    check_choice("format", format, FORMATS)
    check_choice("on_mismatch", on_mismatch, ("error", "skip"))
    check_choice("split", split, tuple(SPLITS))
    log = log or ReadLog()
    if format == "datasets" or (format == "auto" and tables.is_table(source)):
        items = _table(source, split, labelled=labelled, pairs=pairs)
        opened = Source(
            tables.name_of(source), "row", items, set(), tables.language_of(source)
        )  # fmt: skip
    else:
        opened = _file(Path(source), log, labelled=labelled, pairs=pairs)
    rule = _class_rule(tag_map or {}, tagset)
    language = language or opened.language or UNDETERMINED
    skip = on_mismatch == "skip"
    return islice(sentences_of(opened, rule, language, log, skip=skip), limit)


def is_pair(sentence: Sentence) -> bool:
    """Are these the words of two texts?"""
    return PAIR in sentence.words


def are_pairs(train: Sequence[Sentence]) -> bool:
    """Is a set of texts one of pairs? By its first, as the reader lets them be all alike."""
    return any(map(is_pair, train[:1]))


def classes_of(train: Iterable[Sentence]) -> ClassSet:
    """The classes of a train set.

    Raises:
        CorpusError: if there are fewer than two, or more than a store can number.
    """
    found = ClassSet.of({label for sentence in train for label in sentence.tags or ()})
    if 2 <= len(found) <= MOST_CLASSES:
        return found
    raise CorpusError(
        f"the train set has {len(found):,} classes ({_named(found.classes)}); expected 2 to "
        f"{MOST_CLASSES}, in the last column of text<TAB>class"
    )


def _named(classes: Sequence[str]) -> str:
    return ", ".join(classes[:_SHOWN]) + (", …" if len(classes) > _SHOWN else "")


def _class_rule(renamed: Mapping[str, str], known: ClassSet | None) -> Rule:
    def rule(labels: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
        label = renamed.get(labels[0], labels[0])
        if known is not None and label not in known.index:
            problem = (
                f"class {label!r} is none of {_named(known.classes)} (data.types, or else those "
                "of the train set); a tag map can give it one of these names"
            )
            raise UnknownLabelError(0, problem)
        return (label,), 0

    return rule


def _raw(
    texts: Sequence[str], label: str | None, language: str, number: int, unit: str
) -> Raw | Fault:
    """A text, or two with ``PAIR`` between them; ``label`` None is none that was asked for."""
    cut = [words_of(text) for text in texts]
    if not all(cut):
        empty = f" in {unit} {[bool(words) for words in cut].index(False) + 1}"
        return Fault(number, f"no text{empty if len(cut) > 1 else ''}")
    if label == "":
        return Fault(number, "no class: its column is empty")
    words = cut[0] if len(cut) == 1 else (*cut[0], PAIR, *cut[1])
    return Raw(words, None if label is None else (label,), language, number, 1)


def _file(path: Path, log: ReadLog, *, labelled: bool, pairs: bool | None) -> Source:
    if not path.is_file():
        raise missing(path)
    lines = Lines(path)
    rest = iter(lines)
    head = list(islice(rest, SAMPLE))
    rows = [line.split("\t") for line in head if line.strip()]
    if not rows:
        raise CorpusError(f"{path}: the file is empty; expected text<TAB>class, one text a line")
    named = len(rows[0]) > 1 and {cell.strip().lower() for cell in rows[0]} <= _KNOWN
    if named:
        log.notes.append(f"{path}: its first line names the columns, and was left out")
        del rows[0]
    if not rows:
        raise CorpusError(f"{path}: nothing stands below the names of the columns")
    first = next(number for number, line in enumerate(head, 1) if line.strip()) if named else 0
    numbered = enumerate(chain(head, rest), 1)
    wanted = ((number, line) for number, line in numbered if number > first)
    if labelled:
        count = {True: 3, False: 2}.get(pairs, Counter(map(len, rows)).most_common(1)[0][0])
        items = _labelled(wanted, 3 if count > 2 else 2, prefixed=_all_prefixed(rows))
    else:
        items = _unlabelled(wanted, pairs=bool(pairs))
    return Source(str(path), "line", items, lines.broken, sources.language_of(path))


def _prefix(label: str) -> str:
    """``en`` for ``en:1``, "" where no known language stands before a colon."""
    code, colon, rest = label.partition(":")
    return code if colon and rest and sources.language_of(f"/{code}") == code else ""


def _all_prefixed(rows: Sequence[Sequence[str]]) -> bool:
    return bool(rows) and all(_prefix(row[-1].strip()) for row in rows)


def _labelled(
    lines: Iterable[tuple[int, str]], columns: int, *, prefixed: bool
) -> Iterator[Raw | Fault]:
    expected = "text<TAB>class" if columns == 2 else "text<TAB>text<TAB>class"
    for number, line in lines:
        if not line or line.isspace():
            continue
        *texts, label = line.split("\t")
        if len(texts) + 1 != columns:
            found = f"{len(texts) + 1} column{'s' * bool(texts)}"
            yield Fault(number, f"{found} in {line[:40]!r}; expected {expected}")
            continue
        label = label.strip()
        language = _prefix(label) if prefixed else ""
        if language:
            label = label.partition(":")[2]
        yield _raw(texts, label, language, number, "column")


def _unlabelled(lines: Iterable[tuple[int, str]], *, pairs: bool) -> Iterator[Raw | Fault]:
    """The first column of each line, or the first two; others, such as a class, are left out."""
    for number, line in lines:
        texts = line.split("\t")[: 1 + pairs]
        if not line or line.isspace():
            continue
        if pairs and len(texts) < 2:
            yield Fault(number, f"one text in {line[:40]!r}; expected text<TAB>text")
        else:
            yield _raw(texts, None, "", number, "column")


def _table(source: Any, split: str, *, labelled: bool, pairs: bool | None) -> Iterator[Raw | Fault]:
    table, found = tables.open_table(source, split)
    both = next((each for each in _PAIRS if {*each} <= {*found}), None)
    one = next(((name,) for name in _SINGLE if name in found), None)
    texts = (both or one) if pairs is None else (both if pairs else one)
    label = next((name for name in _LABELS if name in found), None)
    if texts is None or (labelled and label is None):
        wanted = {True: "premise and hypothesis, or sentence1 and sentence2", False: "text"}
        raise CorpusError(
            f"{tables.name_of(source)}: the columns are {', '.join(found)}; expected "
            f"{wanted.get(pairs, 'text (or sentence1 and sentence2)')}{', and label' * labelled}"
        )
    language = next((name for name in _LANGUAGES if name in found), None)
    return _rows(table, texts, label if labelled else None, language)


def _rows(
    table: Any, texts: tuple[str, ...], label: str | None, language: str | None
) -> Iterator[Raw | Fault]:
    names = None if label is None else tables.class_names(table, label)
    number = 0
    for batch in tables.batches(table):
        columns = [batch[name] for name in texts]
        size = len(columns[0])
        given = batch[label] if label else [None] * size
        spoken = batch[language] if language else [None] * size
        for *each, value, code in zip(*columns, given, spoken, strict=True):
            number += 1
            name = _class_name(value, names, number) if label else None
            if isinstance(name, Fault):
                yield name
            else:
                yield _raw([text or "" for text in each], name, code or "", number, "text")


def _class_name(value: Any, names: Sequence[str] | None, number: int) -> str | Fault:
    """The class that a cell of a table stands for."""
    if value is None or (names is not None and value == -1):
        return Fault(number, "no class: its cell is empty")
    if isinstance(value, float) and not value.is_integer():
        return Fault(number, f"label {value} is a measure; expected a class")
    if names is not None and isinstance(value, int):
        if 0 <= value < len(names):
            return names[value]
        return Fault(number, f"class number {value} has no name among {_named(names)}")
    return str(int(value)) if isinstance(value, float) else str(value).strip()
