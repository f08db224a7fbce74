"""Processes that tests start: a run that kills itself, and a program in several processes."""

import os
import pathlib
import subprocess
import sys

import jax

ROOT = pathlib.Path(__file__).parents[1]


def run_and_kill(out: pathlib.Path | str, strategy: str, calls: int) -> None:
    """The shrunk quickstart in a process of its own, killed after ``calls`` calls of the step."""
    command = [sys.executable, "-m", "tests.started", str(out), strategy, str(calls)]
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, **cache})
    assert done.returncode == -9, done.stderr.decode()


def launch(
    program: str, processes: int, *arguments: object, compiled: object, flags: str = ""
) -> tuple[int, str]:
    """A module of the tests in several processes of two devices each; gives (code, what it said).

    ``compiled`` is the folder for what is compiled, ``flags`` are XLA's beside those of this
    process, so that both compile alike.
    """
    here = [each for each in os.environ["XLA_FLAGS"].split() if "device_count" not in each]
    flags = " ".join([*here, flags])
    text = (
        "import sys; from xdistil_jax.launch import launch; sys.exit(launch("
        f"[sys.executable, '-m', {program!r}, *sys.argv[1:]], {processes}, 2, "
        "say=lambda message: print(message, file=sys.stderr)))"
    )
    environment = {
        **os.environ, "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


class Kill:
    """A writer that kills the process at the ``calls``-th call of the step."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def write(self, record: object) -> None: ...

    def close(self) -> None: ...

    def progress(self, record: object) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), 9)


if __name__ == "__main__":
    import tests.conftest  # noqa: F401  (eight devices, as where the run is gone on with)
    from tests.test_pipeline import shrunk
    from xdistil_jax import pipeline

    out, strategy, calls = sys.argv[1:]
    pipeline.run(shrunk(out, strategy, save_every_s=0.0), progress=Kill(int(calls)))
