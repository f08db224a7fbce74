"""Lines in, JSON lines out: text or JSON, tagged in batches, answered as soon as input pauses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn

from xdistil_jax.deploy.tagger import Aggregate, Entity, TaggedWord, Tagger

Form = Literal["auto", "text", "json"]
_BLOCK = 1 << 20
"""Bytes that are read ahead, at most, beside one line."""
_LINES, _BYTES = 256, 200_000
"""What is tagged at once, at most; a longer line by itself."""


class _Record(NamedTuple):
    """What a line asks, and the fields that are passed through."""

    fields: dict[str, Any]
    asked: str | list[str]


def blocks(stream: BinaryIO) -> Iterator[list[bytes]]:
    """The lines that are there by now, without waiting for more than one.

    So a person who types a line has it answered, and a file comes in large parts.
    """
    rest: list[bytes] = []
    while content := stream.read1(_BLOCK):
        head, newline, tail = content.rpartition(b"\n")
        if newline:
            yield b"".join([*rest, head]).split(b"\n")
            rest = []
        rest.append(tail)
    if last := b"".join(rest):
        yield [last]


def answer(
    tagger: Tagger,
    parts: Iterable[list[bytes]],
    *,
    form: Form = "auto",
    aggregate: Aggregate = "simple",
    skip: Callable[[str], None] | None = None,
) -> Iterator[list[str]]:
    """The JSON of each line's answer, in order, batch by batch; all of ``parts`` before the next.

    Of a text: ``text`` and its ``entities`` (with the aggregate ``none``: its words as ``tagged``).
    Of a JSON object with ``text``, or with a list of ``words``: its fields, and these. Offsets of
    ``words`` are in the words joined by single spaces. With ``auto`` the first line says what all
    are: JSON if it is an object. Blank lines of JSON are passed over.

    Raises:
        ValueError: naming the first line that can't be used; with ``skip`` that is told instead.
    """
    number = 0
    for lines in parts:
        batch: list[_Record] = []
        size = 0
        for line in lines:
            number += 1
            try:
                text = _decode(line, first=number == 1)
                form = _form(text) if form == "auto" else form
                batch += _read(text, form)
                size += len(line)
            except ValueError as error:
                problem = f"stdin, line {number}: {error}"
                if skip is None:
                    yield _tag(tagger, batch, aggregate)
                    raise ValueError(problem) from error
                skip(problem)
            if len(batch) >= _LINES or size > _BYTES:
                yield _tag(tagger, batch, aggregate)
                batch, size = [], 0
        yield _tag(tagger, batch, aggregate)


def _decode(line: bytes, *, first: bool) -> str:
    try:
        text = line.decode().removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 ({error.reason})") from error
    return text.removeprefix("\ufeff") if first else text


def _form(text: str) -> Form:
    try:
        return "json" if isinstance(json.loads(text), dict) else "text"
    except (ValueError, RecursionError):
        return "text"


def _read(text: str, form: Form) -> list[_Record]:
    """The line's record; none of a blank line of JSON."""
    if form == "text":
        return [_Record({"text": text}, text)]
    if not text.strip():
        return []
    try:
        fields = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object ({error})") from error
    if not isinstance(fields, dict) or ("text" in fields) == ("words" in fields):
        raise ValueError("expected a JSON object with a field text, or one with a list of words")
    asked = fields.get("text", fields.get("words"))
    if "text" in fields and not isinstance(asked, str):
        raise ValueError(f"text: expected a string, found {asked!r:.80}")
    if "words" in fields and not (isinstance(asked, list) and all(map(_is_word, asked))):
        raise ValueError(f"words: expected a list of strings, found {asked!r:.80}")
    return [_Record(fields, asked)]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _is_word(word: Any) -> bool:
    # The splitter leaves lone surrogates out; of given words none may have one.
    return isinstance(word, str) and _has_utf8(word)


def _has_utf8(text: str) -> bool:
    """Has it no lone surrogate?"""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tag(tagger: Tagger, batch: list[_Record], aggregate: Aggregate) -> list[str]:
    texts = [each.asked for each in batch if isinstance(each.asked, str)]
    words = [each.asked for each in batch if not isinstance(each.asked, str)]
    of_texts, of_words = iter(tagger(texts, aggregate)), iter(tagger.tag_words(words, aggregate))
    name = "entities" if aggregate == "simple" else "tagged"
    return [
        _to_json({**each.fields, name: [_shown(one) for one in found]})
        for each in batch
        for found in [next(of_texts if isinstance(each.asked, str) else of_words)]
    ]


def _shown(found: Entity | TaggedWord) -> dict[str, Any]:
    return {**found._asdict(), "score": round(found.score, 4)}


def _to_json(fields: dict[str, Any]) -> str:
    shown = json.dumps(fields, ensure_ascii=False)
    # A lone surrogate is no UTF-8, but JSON has an escape for it.
    return shown if _has_utf8(shown) else json.dumps(fields)
