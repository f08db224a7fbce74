"""A headless Chromium, spoken to through two pipes: the system's, or else the one that npm has."""

import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from xdistil_jax.deploy import npm

_SYSTEM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_HANG_S = 1800
_FLAGS = (
    *("--headless", "--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe"),
)
_FONTS = "<fontconfig><dir>{}</dir></fontconfig>"
# A Chromium for servers that have none; the libraries and fonts that it needs lie beside it.
_PACKAGE = npm.Package(
    "@sparticuz/chromium",
    "153.0.0",
    "sha512-jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA==",
    ("bin/chromium.br", "bin/al2023.tar.br", "bin/fonts.tar.br"),
)


class Browser:
    """One page of a browser; commands as the DevTools protocol names them."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = os.fdopen(commands, "wb"), os.fdopen(answers, "rb")
        self._number, self._session, self._unread = 0, None, b""
        self.events: list[dict[str, Any]] = []
        page = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        told = {"id": self._number, "method": method, "params": parameters}
        told |= {"sessionId": self._session} if self._session else {}
        self._commands.write(json.dumps(told).encode() + b"\0")
        self._commands.flush()
        while True:
            found = self._read()
            if found.get("id") == self._number:
                break
            self.events.append(found)
        if "error" in found:
            raise AssertionError(f"{method}: {found['error']}")
        return found["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            part = os.read(self._answers.fileno(), 1 << 20)
            if not part:
                raise AssertionError("the browser has ended")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def run(self, script: str) -> Any:
        """The value of an expression in the page, waited for if it is a promise."""
        found = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(json.dumps(found["exceptionDetails"], indent=1))
        return found["result"].get("value")

    def close(self) -> None:
        self._commands.close()
        self._answers.close()


@contextmanager
def started(cache: pathlib.Path) -> Iterator[Browser]:
    """A browser, or a skipped test that says what was tried."""
    program, environment = _program(cache)
    # Its helpers may still write there when it has been killed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        to_read, commands = os.pipe()
        answers, to_write = os.pipe()
        flags = [*_FLAGS, f"--user-data-dir={profile}"]
        # The browser reads from descriptor 3 and writes to 4.
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        process = subprocess.Popen(
            ["bash", "-c", shell, program, *flags, "about:blank"],
            pass_fds=(to_read, to_write),
            env={**os.environ, **environment},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        # A browser that hangs fails the test instead of holding it up.
        alarm = threading.Timer(_HANG_S, process.kill)
        alarm.start()
        try:
            browser = Browser(commands, answers)
            yield browser
            browser.close()
        finally:
            alarm.cancel()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _program(cache: pathlib.Path) -> tuple[str, dict[str, str]]:
    """(path, variables of its environment)."""
    chosen = os.environ.get("XDISTIL_TEST_BROWSER", "")
    found = next(filter(None, map(shutil.which, _SYSTEM)), None)
    if found and chosen != "npm":
        return found, {}
    try:
        path = _from_npm(cache)
    except (npm.PackageError, ModuleNotFoundError) as error:
        pytest.skip(f"no Chromium here, and none from npm: {error}")
    places = {"LD_LIBRARY_PATH": "lib", "FONTCONFIG_FILE": "fonts.conf"}
    return str(path), {name: str(path.parent / place) for name, place in places.items()}


def _from_npm(cache: pathlib.Path) -> pathlib.Path:
    import brotli

    folder = cache / "chromium"
    if not folder.is_dir():
        packed = npm.fetch(_PACKAGE, cache)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in ("bin/al2023.tar.br", "bin/fonts.tar.br"):
            with tarfile.open(fileobj=io.BytesIO(brotli.decompress(packed[name]))) as archive:
                archive.extractall(partial, filter="data")
        (partial / "fonts.conf").write_text(_FONTS.format(folder / "fonts"))
        (partial / "chromium").write_bytes(brotli.decompress(packed["bin/chromium.br"]))
        (partial / "chromium").chmod(0o755)
        partial.rename(folder)
    return folder / "chromium"
