"""Where sentences are read from: files and their lines, the names of splits and languages."""

import codecs
import difflib
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
HUB = "hf:"

_CHUNK = 1 << 22
_HEAD = 1 << 16
_Read = TypeVar("_Read")
# ISO 639-1, then the longer codes that WikiAnn uses. A folder called tmp is no language.
_CODES = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da
de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz
ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln
lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi
pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te tg th
ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
ace als ang arz ast ceb cdo ckb crh csb diq eml fil frr fur gan hak hsb ilo jbo ksh lij lmo mhr
mwl mzn nap nds nov pdc pms pnb scn sco szl vec vep vls war wuu xmf zea
"""
_LANGUAGES = frozenset(_CODES.split())


class CorpusError(ValueError):
    """Data that can't be used as it is: file, line, what was expected, what to do."""


class Lines:
    """The lines of a file, plain or gzip, without BOM, CR and LF; ``broken`` ones aren't UTF-8."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken: set[int] = set()

    def __iter__(self) -> Iterator[str]:
        number = 0
        with open_binary(self.path) as file:
            while chunk := _guarded(self.path, file.readlines, _CHUNK):
                if not number:
                    chunk[0] = chunk[0].removeprefix(codecs.BOM_UTF8)
                text = self._decode(chunk, number)
                number += len(chunk)
                yield from text.removesuffix("\n").split("\n")

    def _decode(self, chunk: list[bytes], before: int) -> str:
        data = b"".join(chunk).replace(b"\r\n", b"\n")
        try:
            return data.decode()
        except UnicodeDecodeError:
            numbered = enumerate(chunk, before + 1)
            self.broken.update(number for number, line in numbered if not _is_utf8(line))
            return data.decode(errors="surrogateescape")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def open_binary(path: Path) -> io.BufferedIOBase:
    """Open a file that may be gzip; its first bytes tell."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")


def read_head(path: Path) -> bytes:
    """The first bytes of a file, unpacked."""
    with open_binary(path) as file:
        return _guarded(path, file.read, _HEAD)


def _guarded(path: Path, reading: Callable[[int], _Read], size: int) -> _Read:
    try:
        return reading(size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(f"{path}: damaged gzip file ({error}); fetch it again") from error


def language_of(path: str | os.PathLike[str]) -> str:
    """``en`` for unlabelled/en.txt.gz and wikiann/en/train.txt, "" where the name tells nothing."""
    path = Path(path)
    names = (path.name.partition(".")[0], path.absolute().parent.name)
    return next((name for name in names if name in _LANGUAGES), "")


def missing(path: str | os.PathLike[str]) -> CorpusError:
    """The complaint about a file that isn't there, with the names that come nearest.

    Or about a folder where a file was expected, or the other way round.
    """
    path = Path(path)
    if path.exists():
        wanted = "a file" if path.is_dir() else "a folder, or an ordinary file"
        return CorpusError(f"{path}: expected {wanted}")
    folder = path.absolute()
    while not folder.exists():
        name, folder = folder.name, folder.parent
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:8]
    hint = f"; for a data set of the Hugging Face hub write {HUB}{path}" if not path.suffix else ""
    return CorpusError(f"{path}: no such file; {folder} holds {', '.join(near) or 'nothing'}{hint}")


def split_files(folder: str | os.PathLike[str], split: str) -> list[Path]:
    """The file of ``split`` in ``folder``, or its parquet/arrow/json shards in order; [] if none.

    Raises:
        CorpusError: if two files claim to be the split.
    """
    stem = "|".join(SPLITS[split])
    name = re.compile(rf"(?:{stem})(-\d+-of-\d+)?(?:\.[a-z0-9]+)*")
    found = [(path, name.fullmatch(path.name)) for path in sorted(Path(folder).iterdir())]
    files = [(path, match[1]) for path, match in found if match]
    totals = {shard and shard.rpartition("-")[2] for _, shard in files}
    if len(files) > 1 and (None in totals or len(totals) > 1):
        claims = " and ".join(path.name for path, _ in files)
        raise CorpusError(
            f"{folder}: {claims} both claim to be the {split} split; keep one of them there, "
            f"or name the file itself (data.{split})"
        )
    return [path for path, _ in files]
