"""Hugging Face data sets with ``tokens`` and ``ner_tags`` -> raw sentences. No code is fetched."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xdistil_jax import files
from xdistil_jax.data import sources
from xdistil_jax.data.formats import Fault, Raw
from xdistil_jax.data.sources import HUB, SPLITS, CorpusError

_BATCH = 1000
_COLUMNS = ("tokens", "ner_tags", "langs")
_NAMED = re.compile(rb'"(tokens|ner_tags)"|"(label|labels|text|sentence1?|premise)"\s*:')


def is_table(source: Any) -> bool:
    """Is this a data set (hub name, folder, table file, loaded data set) and no file of lines?"""
    if not isinstance(source, str | os.PathLike):
        return True
    path = Path(source)
    if str(source).startswith(HUB) or path.is_dir():
        return True
    return path.is_file() and _kind(path) is not None


def name_of(source: Any) -> str:
    """What complaints call the data set."""
    return str(source) if isinstance(source, str | os.PathLike) else type(source).__name__


def language_of(source: Any) -> str:
    """The language that the name tells: the configuration of a hub name, or a folder's name."""
    if not isinstance(source, str | os.PathLike):
        return ""
    if str(source).startswith(HUB):
        return sources.language_of(str(source).rpartition(":")[2])
    return sources.language_of(source)


def rows(source: Any, split: str) -> Iterator[Raw | Fault]:
    """The sentences of one split; ``line`` is the number of the row, from 1."""
    table, found = open_table(source, split)
    if not {"tokens", "ner_tags"} & set(found) or "tokens" not in found:
        raise CorpusError(
            f"{name_of(source)}: the columns are {', '.join(found)}; expected tokens and ner_tags"
        )
    return _rows(table, name_of(source))


def open_table(source: Any, split: str) -> tuple[Any, list[str]]:
    """(one split of a data set, the names of its columns).

    Raises:
        CorpusError: if there is no such split, or it can't be read.
    """
    table = source
    if isinstance(source, str | os.PathLike):
        local = str(source).removeprefix(HUB)
        table = _hub(local, split) if not Path(source).exists() else _local(Path(source), split)
    return table, list(table.column_names or next(iter(table), {}))


def batches(table: Any) -> Iterator[dict[str, list[Any]]]:
    """The columns of a data set, some rows at a time."""
    return table.iter(batch_size=_BATCH)


def articles(
    source: str, configuration: str, *, revision: str | None, seed: int, buffer: int
) -> tuple[Iterator[str], str]:
    """The texts of a data set with a column ``text``, and the revision that is read.

    They are streamed in an order that ``seed`` decides: shards are shuffled, and so are rows in a
    buffer of that many. ``source`` is a name on the hub or, as it lies there, a folder with
    ``CONFIGURATION/*.parquet`` (or .arrow); its revision is a checksum.

    Raises:
        CorpusError: naming the data set, what was expected and what it has.
    """
    datasets, name = _library(), f"{source}, {configuration}"
    local = Path(source).is_dir()
    paths = _shards(Path(source), configuration) if local else []
    # What is read is neither copied nor kept: the library's cache holds no part of it.
    with tempfile.TemporaryDirectory() as scratch:
        try:
            if local:
                builder = datasets.load_dataset_builder(
                    _kind(paths[0]) or "parquet", data_files=list(map(str, paths)),
                    cache_dir=scratch,
                )  # fmt: skip
            else:
                builder = datasets.load_dataset_builder(
                    source, configuration, revision=revision, cache_dir=scratch
                )
            table = builder.as_streaming_dataset(split="train")
            columns = table.column_names or list(next(iter(table), {}))
        except (OSError, ValueError, RuntimeError) as error:
            raise CorpusError(
                f"{name}: the data set can't be read ({error}); expected a name on the Hugging "
                "Face hub with that configuration, or a folder with CONFIGURATION/*.parquet"
            ) from error
    if "text" not in columns:
        raise CorpusError(f"{name}: the columns are {', '.join(columns)}; expected text")
    shuffled = table.select_columns(["text"]).shuffle(seed=seed, buffer_size=buffer)
    found = " ".join(map(files.checksum, paths)) if local else builder.hash
    return (row["text"] or "" for row in shuffled), found


def _shards(folder: Path, configuration: str) -> list[Path]:
    place = folder / configuration
    kinds = (".parquet", ".arrow")
    there = sorted(place.iterdir()) if place.is_dir() else []
    if found := [file for file in there if file.suffix in kinds]:
        return found
    names = ", ".join(sorted(os.listdir(folder))[:8]) or "nothing"
    raise CorpusError(f"{folder} holds {names}; expected {configuration} with .parquet or .arrow")


def _rows(table: Any, name: str) -> Iterator[Raw | Fault]:
    names = class_names(table, "ner_tags")
    number = 0
    for batch in batches(table):
        tokens, tags, langs = (batch.get(column) for column in _COLUMNS)
        for row, words in enumerate(tokens):
            number += 1
            language = langs[row][0] if langs and langs[row] else ""
            yield _sentence(words, tags[row] if tags else None, language, number, names, name)


def _sentence(
    words: Sequence[str] | None,
    tags: Sequence[int | str] | None,
    language: str,
    number: int,
    names: Sequence[str] | None,
    name: str,
) -> Raw | Fault:
    if not words or not all(words):
        return Fault(number, "an empty token" if words else "no tokens")
    if tags is None:
        return Raw(words, None, language, number, 1)
    if len(tags) != len(words):
        return Fault(number, f"{len(words)} tokens but {len(tags)} tags")
    texts = []
    for tag in tags:
        if isinstance(tag, int) and names is None:
            raise CorpusError(
                f"{name}, row {number}: ner_tags are numbers and nothing names them; expected text "
                "(B-PER) or the ClassLabel feature, which parquet and arrow files keep"
            )
        if isinstance(tag, int) and not 0 <= tag < len(names or ()):
            return Fault(number, f"tag number {tag} has no name among {', '.join(names or ())}")
        texts.append(names[tag] if isinstance(tag, int) else str(tag))
    return Raw(words, tuple(texts), language, number, 1)


def class_names(table: Any, column: str) -> Sequence[str] | None:
    """What the numbers in a column stand for, if the data set says it."""
    feature = (table.features or {}).get(column)
    inner = feature[0] if isinstance(feature, list) and feature else feature
    return getattr(getattr(inner, "feature", inner), "names", None)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "reading a Hugging Face data set needs datasets: pip install 'xdistil_jax[train]'"
        ) from error
    return datasets


def _hub(name: str, split: str) -> Any:
    """``owner/name`` or ``owner/name:configuration``, from the cache of the library or the hub."""
    datasets = _library()
    path, _, config = name.partition(":")
    try:
        found = datasets.get_dataset_split_names(path, config or None)
        known = next(alias for alias in SPLITS[split] if alias in found)
        return datasets.load_dataset(path, config or None, split=known)
    except StopIteration:
        message = f"{HUB}{name}: no {split} split; it has {', '.join(found)}"
        raise CorpusError(message) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise CorpusError(
            f"{HUB}{name}: the data set can't be loaded ({error}); expected {HUB}OWNER/NAME or "
            f"{HUB}OWNER/NAME:CONFIGURATION, or the path of a local folder"
        ) from error


def _local(path: Path, split: str) -> Any:
    datasets = _library()
    if (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(_files(path, split)[0]))
    if (path / "state.json").is_file():
        return datasets.load_from_disk(str(path))
    paths = _files(path, split) if path.is_dir() else [path]
    if paths[0].is_dir():
        return datasets.load_from_disk(str(paths[0]))
    kind = _kind(paths[0])
    if kind is None:
        raise CorpusError(
            f"{paths[0]}: expected a table (parquet, arrow, or json with tokens and ner_tags, or "
            "text and label); "
            "for other formats name the file itself"
        )
    # Streamed, because reading a local file should leave no copy of it in the user's cache.
    with tempfile.TemporaryDirectory() as scratch:
        return datasets.load_dataset(
            kind,
            data_files=[str(file) for file in paths],
            split="train",
            streaming=True,
            cache_dir=scratch,
        )


def _files(folder: Path, split: str) -> list[Path]:
    for place in (folder, folder / "data"):
        if place.is_dir() and (paths := sources.split_files(place, split)):
            return paths
    names = ", ".join(sorted(os.listdir(folder))[:8])
    raise CorpusError(
        f"{folder}: no {split} split; it holds {names or 'nothing'}; expected "
        f"{SPLITS[split][0]}.parquet, .arrow or .json, or a folder of that name"
    )


def _kind(path: Path) -> str | None:
    """The builder of the datasets library that reads the file, by its content."""
    head = sources.read_head(path)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    text = head.lstrip()
    return "json" if text.startswith((b"{", b"[")) and _NAMED.search(text) else None
