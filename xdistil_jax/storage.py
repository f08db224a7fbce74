"""A run folder in a bucket: work stays on the local disk, what is finished is in both places.

``--run.out gs://bucket/prefix`` (or ``s3://``) is worked on in a *mirror*, a local folder with the
URL in its file ``.mirror``: memory maps and checkpoints want a disk. ``files`` pushes whatever it
has written below a mirror; whoever looks for something there settles it first. A folder in the
bucket is whole when it has an object ``.whole`` (name of a file -> bytes), uploaded last; without
one it is as if it weren't there. For a folder that is no mirror all of this does nothing.
"""

import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xdistil_jax.bucket import Bucket
from xdistil_jax.bucket import StorageError as StorageError

_WHOLE = ".whole"
# In a mirror: whose it is; what is on its way; and, in a folder, that only some files were fetched.
_URL, _FETCHING, _PARTIAL = ".mirror", ".fetching", ".partial"


def is_url(place: str | Path) -> bool:
    """Is this a URL, and not a folder's path?"""
    return isinstance(place, str) and "://" in place


def local(place: str | Path) -> Path:
    """The folder in which ``place`` is worked on: itself, or a URL's mirror on this machine.

    Mirrors lie in ``$XDISTIL_SCRATCH``, or else in ``~/.cache/xdistil_jax``.

    Raises:
        ValueError: for a URL that is neither ``gs://bucket/…`` nor ``s3://bucket/…``.
    """
    if not is_url(place):
        return Path(place)
    scratch = os.environ.get("XDISTIL_SCRATCH") or Path.home() / ".cache" / "xdistil_jax"
    return Path(scratch).absolute() / Bucket.at(str(place)).mark


def start(place: str | Path, *, writes: bool) -> Path:
    """``local(place)``; of a URL made ready, after the bucket was found to be usable.

    Raises:
        StorageError: if it can't be read or, where the caller ``writes``, written.
        ValueError: as ``local``.
    """
    folder = local(place)
    if is_url(place):
        bucket = Bucket.at(str(place))
        if writes:
            bucket.write(_URL, bucket.url.encode())
        else:
            bucket.listing(_URL)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{_URL}.{secrets.token_hex(4)}"
        temporary.write_text(bucket.url)
        temporary.replace(folder / _URL)
    return folder


def find_run(place: str | Path, *, writes: bool) -> Path:
    """A run's folder on this machine; of OUT/EXPERIMENT/RUN in a bucket, files and students in it.

    Raises:
        StorageError: as ``start``.
        ValueError: for a URL that can't be that of a run.
    """
    if not is_url(place):
        return Path(place)
    out, *run = str(place).rstrip("/").rsplit("/", 2)
    if not is_url(out):
        raise ValueError(f"{place}: expected the URL of a run, gs://BUCKET/…/EXPERIMENT/RUN")
    folder = start(out, writes=writes).joinpath(*run)
    refresh(folder)
    settle(folder, "student", "*/student")
    return folder


def push(path: Path) -> None:
    """Upload a file, or a finished folder, that lies in a mirror."""
    if (mirror := Mirror.of(path)) is not None:
        mirror.push(path)


def push_logs(*paths: Path) -> None:
    """Upload files that are still written to, and all files of folders, as they are now."""
    for path in paths:
        if (mirror := Mirror.of(path)) is not None:
            found = path.rglob("*") if path.is_dir() else [path]
            mirror.upload([each for each in found if each.is_file()])


def settle(folder: Path, *patterns: str, only: Collection[str] = ()) -> None:
    """Have finished folders in both places: fetch those that aren't here, push what isn't there.

    They are ``folder`` itself, or those below it that fit ``patterns``. With ``only``, files of
    these names are fetched, and ``fetch_files`` gets others when they are needed.
    """
    if (mirror := Mirror.of(folder)) is not None:
        mirror.settle(folder, patterns, only)


def settle_newest(folder: Path, *, keep: int) -> None:
    """Have the newest of finished folders whose names are numbers in both places.

    In the bucket those before the newest ``keep`` are removed.
    """
    if (mirror := Mirror.of(folder)) is None:
        return
    here = {int(path.name) for path in folder.glob("*") if path.name.isdigit()}
    there = {int(name) for name in mirror.whole(folder) if name.isdigit()}
    if here or there:
        newest = max(here | there)
        mirror.settle(folder / str(newest), (), ())
        for number in sorted(there | {newest})[:-keep]:
            mirror.remove(folder / str(number))


def refresh(folder: Path) -> None:
    """Take the bucket's files that lie in ``folder`` itself in place of those here.

    Those that only this disk has are pushed; of a log (``.jsonl``) the longer one is taken.
    """
    if (mirror := Mirror.of(folder)) is not None:
        mirror.refresh(folder)


def fetch_files(paths: Sequence[Path]) -> None:
    """Fetch those of these files, all of one mirror, that are in the bucket and not here."""
    absent = [path for path in paths if not path.exists()]
    mirror = Mirror.of(absent[0]) if absent else None
    if mirror is not None:
        parent = Path(os.path.commonpath([path.parent for path in absent]))
        mirror.fetch(parent, {path.relative_to(parent).as_posix() for path in absent})


def names(folder: Path) -> list[str]:
    """What lies in ``folder`` in the bucket, by name; nothing that is hidden."""
    mirror = Mirror.of(folder)
    found = mirror.bucket.children(mirror.name_of(folder)) if mirror else ()
    return sorted(name for name in found if not name.startswith("."))


def bytes_of(folder: Path) -> int:
    """The size of a folder: in the bucket, or here where it has none."""
    if (mirror := Mirror.of(folder)) is not None:
        return sum(mirror.bucket.listing(mirror.name_of(folder)).values())
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove(path: Path) -> None:
    """Remove a file or folder from the bucket, if it has one; it is at once no longer whole."""
    if (mirror := Mirror.of(path)) is not None:
        mirror.remove(path)


def is_mirrored(path: Path) -> bool:
    """Does ``path`` lie in the mirror of a bucket?"""
    return Mirror.of(path) is not None


def shown(path: Path) -> str:
    """The URL of what lies in a mirror; any other path as it is."""
    mirror = Mirror.of(path)
    return str(path) if mirror is None else mirror.bucket.url_of(mirror.name_of(path))


def places(path: Path) -> str:
    """Where ``path`` lies, for a message that says what to delete: here and in the bucket."""
    url = shown(path)
    return url if url == str(path) else f"{path} and {url}"


@dataclass(frozen=True)
class Mirror:
    """A local folder and the bucket whose copy it is."""

    bucket: Bucket
    folder: Path

    @classmethod
    def of(cls, path: Path) -> "Mirror | None":
        """The mirror in which ``path`` lies; nothing that is hidden, and so unfinished, has one."""
        for parent in (path.absolute(), *path.absolute().parents):
            if (parent / _URL).is_file():
                return cls(Bucket((parent / _URL).read_text()), parent)
            if parent.name.startswith("."):
                break
        return None

    def name_of(self, path: Path) -> str:
        """The name that ``path`` has in the bucket."""
        return path.absolute().relative_to(self.folder).as_posix()

    def whole(self, folder: Path) -> set[str]:
        """The whole folders at (``.``) or below ``folder`` in the bucket."""
        listing = map(PurePosixPath, self.bucket.listing(self.name_of(folder)))
        return {str(path.parent) for path in listing if path.name == _WHOLE}

    def upload(self, paths: Sequence[Path]) -> None:
        """Upload files."""
        self.bucket.upload({self.name_of(path): path for path in paths})

    def push(self, path: Path) -> None:
        """Upload a file; or a folder, its mark last, unless only a part of it was fetched."""
        if not path.is_dir():
            self.upload([path])
        elif not (path / _PARTIAL).exists():
            found = sorted(each for each in path.rglob("*") if each.is_file())
            self.upload(found)
            sizes = {each.relative_to(path).as_posix(): each.stat().st_size for each in found}
            self.bucket.write(f"{self.name_of(path)}/{_WHOLE}", json.dumps(sizes).encode())

    def settle(self, folder: Path, patterns: Sequence[str], only: Collection[str]) -> None:
        """As the function of this name."""
        there = self.whole(folder)
        if patterns:
            there = {name for name in there if any(map(PurePosixPath(name).match, patterns))}
            found = [path for pattern in patterns for path in folder.glob(pattern)]
            here = {str(path.relative_to(folder)) for path in found if path.name[0] != "."}
        else:
            there &= {"."}
            here = {"."} if folder.is_dir() else set()
        for name in sorted(here - there):
            self.push(folder / name)
        if there - here:
            self._fetch_folders([folder / name for name in sorted(there - here)], only)

    def _fetch_folders(self, folders: Sequence[Path], only: Collection[str]) -> None:
        prefixes = [self.name_of(folder) for folder in folders]
        marks = self.bucket.read([f"{prefix}/{_WHOLE}" for prefix in prefixes])
        with self._staging() as staging:
            paths: dict[str, Path] = {}
            sizes: dict[str, int] = {}
            for number, (prefix, mark) in enumerate(zip(prefixes, marks, strict=True)):
                (staging / str(number)).mkdir()
                for name, size in json.loads(mark).items():
                    if only and name not in only:
                        (staging / str(number) / _PARTIAL).touch()
                        continue
                    paths[f"{prefix}/{name}"] = staging / str(number) / name
                    sizes[f"{prefix}/{name}"] = size
            self.bucket.download(paths, sizes)
            for number, folder in enumerate(folders):
                folder.parent.mkdir(parents=True, exist_ok=True)
                # Another process may have fetched the same in the meantime.
                if not folder.exists():
                    (staging / str(number)).rename(folder)

    def refresh(self, folder: Path) -> None:
        """As the function of this name."""
        children = self.bucket.children(self.name_of(folder))
        there = {name: size for name, size in children.items() if size is not None}

        def is_ours(path: Path) -> bool:
            longer = path.suffix == ".jsonl" and path.stat().st_size > there.get(path.name, 0)
            return path.name not in there or longer

        ours = [path for path in folder.glob("[!.]*") if path.is_file() and is_ours(path)]
        self.upload(ours)
        shown = {name for name in there if not name.startswith(".")}
        self.fetch(folder, shown - {path.name for path in ours})

    def fetch(self, parent: Path, wanted: Collection[str]) -> None:
        """Fetch those of the ``wanted`` files below ``parent`` that are in the bucket."""
        if not wanted:
            return
        prefix = self.name_of(parent)
        there = self.bucket.listing(prefix)
        chosen = sorted(there.keys() & set(wanted))
        remote = [name if prefix == "." else f"{prefix}/{name}" for name in chosen]
        with self._staging() as staging:
            paths = {name: staging / str(number) for number, name in enumerate(remote)}
            sizes = {name: there[each] for name, each in zip(remote, chosen, strict=True)}
            self.bucket.download(paths, sizes)
            for each, name in zip(chosen, remote, strict=True):
                (parent / each).parent.mkdir(parents=True, exist_ok=True)
                paths[name].replace(parent / each)

    def remove(self, path: Path) -> None:
        """As the function of this name."""
        prefix = self.name_of(path)
        every = [f"{prefix}/{name}".rstrip("/") for name in self.bucket.listing(prefix)]
        marks = [name for name in every if PurePosixPath(name).name == _WHOLE]
        self.bucket.remove(marks)
        self.bucket.remove(sorted(set(every) - set(marks)))

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """An empty folder on the mirror's file system, so that what was fetched is only renamed."""
        folder = self.folder / _FETCHING / f"{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
