"""Word vectors from a text file, as fastText and GloVe write them: ``word v1 … vE`` a line."""

from collections.abc import Container
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from xdistil_jax.data.sources import CorpusError, Lines, missing


def read_vectors(
    path: str | Path, words: Container[str], width: int
) -> dict[str, Float32[np.ndarray, "E"]]:
    """The vectors, of ``width`` numbers, of those ``words`` that the file has; the first of each.

    Plain or gzip; a first line of two whole numbers, fastText's header, is passed over. Numbers of
    words that aren't asked for are counted, not read.

    Raises:
        CorpusError: naming file and line, if vectors have another width or a line is broken.
    """
    path = Path(path)
    if not path.is_file():
        raise missing(path)
    found: dict[str, np.ndarray] = {}
    for number, line in enumerate(Lines(path), 1):
        text = line.rstrip().replace("\t", " ")
        word, _, rest = text.partition(" ")
        if not text or (number == 1 and _is_header(path, text, width)):
            continue
        count = rest.count(" ") + bool(rest)
        if count != width:
            if count < width or any(map(_is_number, islice(rest.split(" "), count - width))):
                raise CorpusError(
                    f"{path}, line {number}: expected a word and {width} numbers "
                    f"(student.embed), found {count}"
                )
            # GloVe has words with spaces; no piece has any.
            continue
        if word in words and word not in found:
            found[word] = _numbers(path, number, rest)
    return found


def _is_header(path: Path, text: str, width: int) -> bool:
    fields = text.split(" ")
    if len(fields) != 2 or not all(field.isdecimal() for field in fields):
        return False
    if int(fields[1]) != width:
        raise CorpusError(
            f"{path}, line 1: vectors of {fields[1]} numbers; expected {width} (student.embed): "
            f"set it to {fields[1]}, or take another file"
        )
    return True


def _is_number(text: str) -> bool:
    try:
        # Beyond float32 a number is as good as none.
        return abs(float(text)) < 1e30
    except ValueError:
        return False


def _numbers(path: Path, number: int, text: str) -> Float32[np.ndarray, "E"]:
    fields = text.split(" ")
    if wrong := [field for field in fields if not _is_number(field)]:
        raise CorpusError(f"{path}, line {number}: expected finite numbers, found {wrong[0]!r}")
    return np.array(fields, np.float32)
