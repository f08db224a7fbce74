"""Which files a corpus is read from: those of each split, and the unlabelled ones."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from xdistil_jax.data.readers import ReadLog
from xdistil_jax.data.sources import HUB, SPLITS, CorpusError, missing, split_files
from xdistil_jax.data.spec import DataSpec


def split_sources(spec: DataSpec, split: str) -> list[tuple[str, str | None]]:
    """The files of a split, each with the language that ``spec`` gives it.

    Raises:
        CorpusError: for a split, folder or file that isn't there, saying what is.
    """
    sole = spec.languages[0] if len(spec.languages) == 1 else None
    if given := getattr(spec, split):
        return [(given, sole)]
    if not spec.root:
        raise CorpusError(
            f"no {split} set: name its file (data.{split}), or a folder that holds "
            f"LANGUAGE/{split}.txt (data.root)"
        )
    if spec.root.startswith(HUB):
        if not spec.languages:
            raise CorpusError(f"data.root is {spec.root}: say which of its languages to read")
        return [(f"{spec.root}:{language}", language) for language in spec.languages]
    root = Path(spec.root)
    if not root.is_dir():
        raise missing(root)
    if split_files(root, split):
        return [(str(path), sole) for path in split_files(root, split)]
    folders = [root / language for language in spec.languages] or [
        path for path in sorted(root.iterdir()) if _has(path, split) or _has(path, "train")
    ]
    if not folders:
        _refuse_unless_elsewhere(root, split)
    if split == "train":
        # Of a language whose labels are withheld there need be none.
        folders = [each for each in folders if each.name not in spec.zero_shot or _has(each, split)]
    return [(str(path), folder.name) for folder in folders for path in _required(folder, split)]


def unlabelled_sources(
    spec: DataSpec, known: Iterable[str], log: ReadLog
) -> Iterator[tuple[str, str | None]]:
    """The unlabelled files, those in a folder with their language: of ``known``, those there are.

    Raises:
        CorpusError: where the folder has none of them, or one twice.
    """
    yield from ((path, None) for path in spec.unlabelled)
    if not spec.unlabelled_root:
        return
    root = Path(spec.unlabelled_root)
    if not root.is_dir():
        raise missing(root)
    found: list[tuple[str, str]] = []
    lacking: list[str] = []
    for language in spec.languages or known:
        paths = [root / f"{language}.txt", root / f"{language}.txt.gz"]
        there = [path for path in paths if path.exists()]
        if len(there) > 1:
            raise CorpusError(f"{root}: {language}.txt stands there plain and as .gz; keep one")
        if there:
            found.append((str(there[0]), language))
        else:
            lacking.append(language)
    if not found and not lacking:
        raise CorpusError(
            f"{root}: expected LANGUAGE.txt, such as de.txt, found {_names(root)}: call the files "
            "after the codes of their languages, or name these (data.languages)"
        )
    if not found:
        raise missing(root / f"{lacking[0]}.txt")
    if lacking:
        log.notes.append(f"no unlabelled text for {', '.join(lacking)}")
    yield from found


def check_distinct(spec: DataSpec) -> None:
    """One file is one split. Names are compared; nothing is opened.

    Raises:
        CorpusError: for one that is given for two.
    """
    given = [("unlabelled", path) for path in spec.unlabelled]
    for split in ("train", "dev", "test"):
        with suppress(CorpusError):
            given += [(split, path) for path, _ in split_sources(spec, split)]
    taken: dict[str, str] = {}
    for split, path in given:
        # A hub name or a folder holds several splits.
        if path.startswith(HUB) or os.path.isdir(path):
            continue
        other = taken.pop(real := os.path.realpath(path), None)
        taken[real] = split
        if other == "unlabelled" and split == "train" and not spec.train_as_transfer:
            continue
        if other:
            raise CorpusError(
                f"{path} is given for {other} and for {split}; one file is one split (unlabelled "
                "may repeat train where data.train_as_transfer is off)"
            )


def _has(folder: Path, split: str) -> bool:
    return folder.is_dir() and bool(split_files(folder, split))


def _refuse_unless_elsewhere(root: Path, split: str) -> None:
    """Complain that no folder has ``split``, which all but the train set may lack.

    Whoever keeps text apart from dev and test reads folders with only one of the two.
    """
    there = any(_has(path, each) for path in root.iterdir() for each in SPLITS)
    if split == "train" or not there:
        raise CorpusError(
            f"{root}: expected folders of languages, LANGUAGE/{split}.txt, found {_names(root)}: "
            f"name the folder that holds them (data.root), or a single file (data.{split})"
        )


def _names(folder: Path) -> str:
    return ", ".join(sorted(os.listdir(folder))[:8]) or "nothing"


def _required(folder: Path, split: str) -> list[Path]:
    if not folder.is_dir():
        raise missing(folder)
    if files := split_files(folder, split):
        return files
    raise CorpusError(f"{folder}: no {split} file; expected {split}.txt, found {_names(folder)}")
