"""Objects below a URL (``gs://``, ``s3://``) by fsspec, and what to say when that fails."""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

# What fsspec needs, and the extra that installs it.
_NEEDS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
_LOGIN = {"gs": "gcloud auth application-default login", "s3": "aws configure"}
_REFUSALS = ("Credential", "Forbidden", "Unauthorized", "Anonymous caller", "401", "403")
# Bytes from which gcsfs uploads a file in chunks.
_IN_ONE_MESSAGE = 5 << 20
Answer = TypeVar("Answer")


class StorageError(RuntimeError):
    """A bucket that can't be used; the message names its URL and says what to do."""


@dataclass(frozen=True)
class Bucket:
    """The objects below ``url``; ``name`` is that of an object, or a prefix, from there on.

    Every method raises StorageError where the bucket can't be asked.
    """

    url: str

    @classmethod
    def at(cls, url: str) -> "Bucket":
        """The bucket of a URL as a user writes it.

        Raises:
            ValueError: if it is neither ``gs://bucket/…`` nor ``s3://bucket/…``.
        """
        scheme, _, rest = url.partition("://")
        if scheme not in _NEEDS or not rest.strip("/"):
            raise ValueError(f"{url}: expected a folder, gs://BUCKET/PREFIX or s3://BUCKET/PREFIX")
        return cls(f"{scheme}://{rest.strip('/')}")

    @property
    def mark(self) -> str:
        """A name for a local folder that no other URL has."""
        digest = hashlib.blake2b(self.url.encode(), digest_size=4).hexdigest()
        return f"{self.url.rpartition('/')[2]}-{digest}"

    def url_of(self, name: str) -> str:
        """Of an object or a prefix; ``.`` is all."""
        return self.url if name == "." else f"{self.url}/{name}"

    def listing(self, name: str = ".") -> dict[str, int]:
        """Every object at or below ``name``, by its name from there on -> its bytes."""
        root = _key(self.url_of(name))
        found = self._ask(lambda system: system.find(root, detail=True))
        sizes = {key: each["size"] for key, each in found.items() if not key.endswith("/")}
        return {key[len(root) :].lstrip("/"): size for key, size in sizes.items()}

    def children(self, name: str) -> dict[str, int | None]:
        """What lies directly below ``name``, by its own name -> its bytes (None: a prefix)."""
        root = _key(self.url_of(name))

        def ask(system: Any) -> list[dict[str, Any]]:
            try:
                return system.ls(root, detail=True)
            except FileNotFoundError:
                return []

        found = {each["name"].rstrip("/"): each for each in self._ask(ask)}
        return {
            key.rpartition("/")[2]: each["size"] if each["type"] == "file" else None
            for key, each in found.items()
            if key != root
        }

    def write(self, name: str, content: bytes) -> None:
        """Write an object."""
        url = self.url_of(name)
        if url.startswith("gs://") and content.endswith(b"\r"):
            self._ask(lambda system: _post(system, _key(url), content))
        else:
            self._ask(lambda system: system.pipe_file(url, content))

    def read(self, names: Sequence[str]) -> list[bytes]:
        """The contents of objects."""
        urls = [self.url_of(name) for name in names]
        found = self._ask(lambda system: system.cat(urls))
        return [found[_key(url)] for url in urls]

    def upload(self, files: Mapping[str, Path]) -> None:
        """Files as objects of these names, several at a time; each appears whole."""
        apart = [name for name, path in files.items() if _ends_in_return(path)]
        for name in apart:
            self.write(name, files[name].read_bytes())
        if files := {name: path for name, path in files.items() if name not in apart}:
            urls, paths = [self.url_of(name) for name in files], [str(p) for p in files.values()]
            self._ask(lambda system: system.put(paths, urls))

    def download(self, files: Mapping[str, Path], sizes: Mapping[str, int]) -> None:
        """Objects of these names to files, several at a time.

        Raises:
            StorageError: if one of them hasn't the size that it should have.
        """
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        if files:
            urls, paths = [self.url_of(name) for name in files], [str(p) for p in files.values()]
            self._ask(lambda system: system.get(urls, paths))
        for name, path in files.items():
            if (size := path.stat().st_size) != sizes[name]:
                url = self.url_of(name)
                raise StorageError(
                    f"{url} is damaged: {size:,} bytes where {sizes[name]:,} were uploaded. Delete "
                    f"{url.rpartition('/')[0]} and repeat the command"
                )

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects."""
        if names:
            urls = [self.url_of(name) for name in names]
            self._ask(lambda system: system.rm(urls))

    def _ask(self, question: Callable[[Any], Answer]) -> Answer:
        scheme = self.url.partition("://")[0]
        try:
            return question(_system(scheme))
        except ImportError as error:
            package, extra = _NEEDS[scheme]
            raise StorageError(
                f"{self.url} needs {package}, which is not installed: pip install "
                f'"xdistil_jax[{extra}]"'
            ) from error
        except Exception as error:
            raise StorageError(_complaint(self.url, error)) from error


def _system(scheme: str) -> Any:
    import fsspec

    # Whatever it logs arrives as an exception, too.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # What others have written since must be seen, so no listing is kept.
    return fsspec.filesystem(scheme, use_listings_cache=False)


def _ends_in_return(path: Path) -> bool:
    """Is it a small file whose last byte is a carriage return?

    gcsfs sends one as a part of a message, with a line feed and a boundary behind it: whoever takes
    both bytes for the end of a line drops the last of the file.
    """
    if not 0 < path.stat().st_size < _IN_ONE_MESSAGE:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\r"


def _post(system: Any, key: str, content: bytes) -> None:
    """Upload to GCS as the body of a request, not as a part of one."""
    bucket, _, name = key.partition("/")
    path = f"{system._location}/upload/storage/v1/b/{bucket}/o"
    headers = {"Content-Type": "application/octet-stream"}
    system.call("POST", path, uploadType="media", name=name, headers=headers, data=content)


def _key(url: str) -> str:
    """As fsspec names it: bucket/prefix."""
    return url.partition("://")[2]


def _complaint(url: str, error: Exception) -> str:
    """One sentence: what was wrong, and what to do."""
    scheme, _, rest = url.partition("://")
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if isinstance(error, FileNotFoundError):
        bucket = rest.partition("/")[0]
        return f"{url}: not found ({reason}); make the bucket {bucket!r}, or correct the URL"
    if isinstance(error, PermissionError) or any(word in reason for word in _REFUSALS):
        return (
            f"{url}: this machine may not use it ({reason}); log in ({_LOGIN[scheme]}), or have "
            "the right to read and write there given to you"
        )
    return (
        f"{url} can't be reached ({reason}); look at the network and repeat the command: it goes "
        "on where it stopped"
    )
