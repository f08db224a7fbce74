"""Files of pinned packages from the npm registry, checked before they are opened."""

import base64
import hashlib
import http.client
import io
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from xdistil_jax import files

_REGISTRY = "https://registry.npmjs.org"
CACHE = Path("~/.cache/xdistil_jax/npm")
_TIMEOUT_S = 60


class PackageError(ValueError):
    """A package that can't be had, or isn't the one that was pinned."""


@dataclass(frozen=True)
class Package:
    """``integrity`` as npm writes it: sha512- and the base64 of the tarball's SHA-512."""

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]
    """What is wanted of it, as paths below ``package/``."""

    @property
    def tarball(self) -> str:
        return f"{self.name.rpartition('/')[2]}-{self.version}.tgz"

    @property
    def url(self) -> str:
        return f"{_REGISTRY}/{self.name}/-/{self.tarball}"


def fetch(package: Package, folder: str | Path | None = None) -> dict[str, bytes]:
    """The wanted files of a package; nothing of it is unpacked to the disk.

    The tarball is looked for in ``folder``, by default ``CACHE``, and else downloaded to it.

    Raises:
        PackageError: if it can't be downloaded, isn't what was pinned, or lacks a file.
    """
    folder = CACHE.expanduser() if folder is None else Path(folder)
    path = folder / package.tarball
    content = path.read_bytes() if path.is_file() else _download(package, path)
    if integrity(content) != package.integrity:
        raise PackageError(
            f"{path} is not {package.name} {package.version}: its SHA-512 is another. Delete it "
            f"and repeat the command, or put there what {package.url} gives"
        )
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, content)
    return _members(package, content, path)


def _download(package: Package, path: Path) -> bytes:
    try:
        with urllib.request.urlopen(package.url, timeout=_TIMEOUT_S) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise PackageError(
            f"{package.url} can't be read ({getattr(error, 'reason', error)}). On a machine with a "
            f"network, download it (npm pack {package.name}@{package.version}), put it here as "
            f"{path}, or name another folder with --web-packages, and repeat the command"
        ) from error


def integrity(content: bytes) -> str:
    """As npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


def _members(package: Package, content: bytes, path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive:
            folder, _, name = member.name.partition("/")
            if folder == "package" and member.isreg() and name in package.files:
                found[name] = archive.extractfile(member).read()
    if missing := [name for name in package.files if name not in found]:
        raise PackageError(f"{path}: {package.name} {package.version} lacks {', '.join(missing)}")
    return found
