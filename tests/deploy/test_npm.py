"""Packages: only what was pinned is opened, and nothing is written outside of the cache."""

import functools
import http.server
import io
import socket
import tarfile
import threading

import pytest

from xdistil_jax.deploy import npm

CONTENT = {"package/dist/a.js": b"let a;", "package/README.md": b"read me"}


def tarball(members, kind=tarfile.REGTYPE):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def package(content, *wanted):
    return npm.Package("@some/toy", "1.2.3", npm.integrity(content), wanted or ("dist/a.js",))


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder that is served as the registry, and the paths that were asked for."""
    folder, asked = tmp_path / "registry", []
    (folder / "@some" / "toy" / "-").mkdir(parents=True)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    serve = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(npm, "_REGISTRY", f"http://127.0.0.1:{server.server_port}")
        yield folder / "@some" / "toy" / "-" / "toy-1.2.3.tgz", asked
        server.shutdown()


def test_a_package_is_downloaded_once(registry, tmp_path):
    path, asked = registry
    path.write_bytes(tarball(CONTENT))
    wanted = package(path.read_bytes())
    for _ in range(2):
        assert npm.fetch(wanted, tmp_path / "cache") == {"dist/a.js": b"let a;"}
    assert asked == ["/@some/toy/-/toy-1.2.3.tgz"]
    assert [each.name for each in (tmp_path / "cache").iterdir()] == ["toy-1.2.3.tgz"]


def test_a_folder_with_the_tarball_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(npm, "_REGISTRY", "http://127.0.0.1:9")
    content = tarball(CONTENT)
    (tmp_path / "toy-1.2.3.tgz").write_bytes(content)
    assert npm.fetch(package(content), tmp_path) == {"dist/a.js": b"let a;"}


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(npm, "_REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(npm.PackageError, match=r"npm pack @some/toy@1.2.3.*--web-packages"):
        npm.fetch(package(b""), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_missing_package_is_no_crash(registry, tmp_path):
    with pytest.raises(npm.PackageError, match="can't be read"):
        npm.fetch(package(b""), tmp_path)


def test_a_download_that_is_cut_short_is_no_crash(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(npm, "_REGISTRY", f"http://127.0.0.1:{server.getsockname()[1]}")

        def hang_up():
            caller, _ = server.accept()
            with caller:
                caller.recv(1 << 16)
                caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(npm.PackageError, match=r"can't be read .*IncompleteRead"):
            npm.fetch(package(b""), tmp_path)
        thread.join()


@pytest.mark.parametrize("place", ["registry", "cache"])
def test_another_package_is_refused(registry, tmp_path, place):
    wanted = package(tarball(CONTENT))
    where = registry[0] if place == "registry" else tmp_path / "toy-1.2.3.tgz"
    where.write_bytes(tarball({**CONTENT, "package/dist/a.js": b"evil()"}))
    with pytest.raises(npm.PackageError, match="SHA-512 is another"):
        npm.fetch(wanted, tmp_path)
    assert (tmp_path / "toy-1.2.3.tgz").exists() == (place == "cache")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../dist/a.js", tarfile.REGTYPE),
        ("/package/dist/a.js", tarfile.REGTYPE),
        ("package/dist/a.js", tarfile.SYMTYPE),
        ("package/dist/b.js", tarfile.REGTYPE),
    ],
)
def test_only_plain_files_of_the_package_count(tmp_path, name, kind):
    content = tarball({name: b"let a;"}, kind)
    (tmp_path / "toy-1.2.3.tgz").write_bytes(content)
    with pytest.raises(npm.PackageError, match=r"lacks dist/a.js"):
        npm.fetch(package(content), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
