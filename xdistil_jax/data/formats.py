"""The file formats of labelled and plain text: lines -> raw sentences, or what is wrong with them.

A parser never raises: it yields a ``Fault`` for a sentence that it can't read, and the reader
decides whether that ends the reading. Tags are as written; the reader checks and repairs them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from xdistil_jax.text import words_of


class Raw(NamedTuple):
    """A sentence as it stands in ``lines`` lines from ``line`` on; language "" is not known."""

    words: Sequence[str]
    tags: tuple[str, ...] | None
    language: str
    line: int
    lines: int


class Fault(NamedTuple):
    """Why the sentence around ``line`` can't be used, and what to do about it."""

    line: int
    problem: str


Parser = Callable[[Iterable[str]], Iterator[Raw | Fault]]

_CODE = r"[a-z]{2,3}(?:-[a-z]{1,8})*|simple"
_PREFIXED_TOKEN = re.compile(rf"({_CODE}):(?! *$)(.+)", re.DOTALL)
_PREFIXED_TAG = re.compile(rf"({_CODE}):(.+)")
# Wider than IOB2: a file in IOBES is told that its tags are unknown, and isn't taken for text.
_TAG = re.compile(rf"(?:({_CODE}):)?(?:O|[BIESLUMW]-\S+)")
_DOCUMENT = "-DOCSTART-"


def _columns(line: str) -> tuple[str, str]:
    """The first and the last of the columns, "" where there is none."""
    token, tab, tag = line.partition("\t")
    if not tab:
        token, _, tag = line.strip(" ").partition(" ")
        return token, tag.rpartition(" ")[2]
    return token, tag.rpartition("\t")[2] if "\t" in tag else tag


def conll(lines: Iterable[str]) -> Iterator[Raw | Fault]:
    """``token<TAB>tag`` or ``token tag``, a blank line after a sentence.

    Of more than two columns, the first is the token and the last the tag.
    """
    words: list[str] = []
    tags: list[str] = []
    fault: Fault | None = None
    for number, line in enumerate(chain(lines, [""]), 1):
        token, tag = _columns(line)
        if tag and token != _DOCUMENT and token.strip(" "):
            words.append(token)
            tags.append(tag)
        elif line and not line.isspace() and token != _DOCUMENT:
            column = "tag" if token.strip(" ") else "token"
            fault = fault or Fault(number, f"no {column} in {line!r}: expected token<TAB>tag")
        else:
            if fault:
                yield fault
            elif words:
                yield Raw(words, tuple(tags), "", number - len(words), len(words))
            words, tags, fault = [], [], None


def mmner(lines: Iterable[str]) -> Iterator[Raw | Fault]:
    """``lang:token<TAB>tag``, as WikiAnn and mmner were first handed out."""
    for item in conll(lines):
        if isinstance(item, Fault):
            yield item
            continue
        found = [_PREFIXED_TOKEN.fullmatch(word) for word in item.words]
        if None in found:
            bad = found.index(None)
            problem = f"no language in {item.words[bad]!r}: expected lang:token<TAB>tag"
            yield Fault(item.line + bad, problem)
        else:
            words = [match[2] for match in found if match]
            language = item.words[0].partition(":")[0]
            yield item._replace(words=words, language=language)


@lru_cache(maxsize=1 << 16)
def _bare_tags(text: str) -> tuple[str, tuple[str, ...]]:
    """Language and tags of a line whose prefixes stand on every tag, on the first, or nowhere."""
    language, tags = "", []
    for tag in text.split():
        match = _PREFIXED_TAG.fullmatch(tag)
        language = language or (match[1] if match else "")
        tags.append(match[2] if match else tag)
    return language, tuple(tags)


def tsv(lines: Iterable[str]) -> Iterator[Raw | Fault]:
    """``token token<TAB>TAG TAG``, a sentence a line: the three forms of the older code."""
    for number, line in enumerate(lines, 1):
        left, tab, right = line.partition("\t")
        if not line or line.isspace():
            continue
        words = [word for word in left.split(" ") if word]
        language, tags = _bare_tags(right)
        if len(words) == len(tags) and words:
            yield Raw(words, tags, language, number, 1)
        elif tab:
            yield Fault(number, f"{len(words)} tokens but {len(tags)} tags")
        else:
            yield Fault(number, f"no tags in {line[:40]!r}: expected tokens<TAB>tags")


def text(lines: Iterable[str]) -> Iterator[Raw | Fault]:
    """A sentence a line, without tags."""
    for number, line in enumerate(lines, 1):
        if words := words_of(line):
            yield Raw(words, None, "", number, 1)


PARSERS: dict[str, Parser] = {"conll": conll, "mmner": mmner, "tsv": tsv, "text": text}


def detect(lines: Iterable[str]) -> str:
    """The name of the format in which (the first) lines of a file are written.

    Half of them decide, so that a broken line is complained about and not explained away.
    """
    rows = [line for line in lines if line.strip()]
    if any(row.startswith(_DOCUMENT) for row in rows):
        return "conll"
    columns = [_columns(row) for row in rows]
    tagged = [token for token, tag in columns if token and _TAG.fullmatch(tag)]
    rights = [row.partition("\t")[2].split() for row in rows]
    rights = [tags for tags in rights if tags and all(map(_TAG.fullmatch, tags))]
    plural = any(len(tags) > 1 or _PREFIXED_TAG.fullmatch(tags[0]) for tags in rights)
    if 2 * len(rights) >= len(rows) and plural:
        return "tsv"
    if 2 * len(tagged) >= len(rows) > 0:
        prefixed = sum(bool(_PREFIXED_TOKEN.fullmatch(token)) for token in tagged)
        return "mmner" if 2 * prefixed > len(tagged) else "conll"
    return "text"
