"""As a program: runs that die, as by kill -9, at their n-th record or n-th touch of the folder."""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from tests.distill.toys import STAGES, Records, make_params, make_training
from xdistil_jax import trees
from xdistil_jax.distill.checkpoint import Checkpoints
from xdistil_jax.distill.loop import run_plan


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Journal(Records):
    """Records on the disk; dies at a given one, before or after it is written."""

    def __init__(self, path: Path, keep: int, deadly: int | None) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        super().__init__(map(json.loads, lines[:keep]))
        self.path, self.deadly = path, deadly

    def write(self, record) -> None:
        super().write(record)
        if self.deadly == len(self.written):
            kill()
        self.path.write_text("".join(json.dumps(each) + "\n" for each in self.written))


def kill_at_touch(number: int, root: str) -> None:
    left = [number]

    def hook(name: str, arguments: tuple) -> None:
        if name in ("open", "os.mkdir", "os.rename") and str(arguments[0]).startswith(root):
            left[0] -= 1
            if left[0] < 0:
                kill()

    sys.addaudithook(hook)


def run(root: Path, *, record: int | None = None, touch: int | None = None) -> None:
    """Run the plan in ``root``, or go on with it; leaves the parameters in ``params.npz``."""
    if touch is not None:
        kill_at_touch(touch, str(root / "checkpoints"))
    checkpoints = Checkpoints(root / "checkpoints", every=0)
    saved = checkpoints.peek() or {"records": 0}
    writer = Journal(root / "metrics.jsonl", saved["records"], record)
    result = run_plan(make_training(checkpoints, writer), STAGES, make_params())
    np.savez(root / "params.npz", **dict(trees.leaves(result.params)))


def fork(root: Path, **deadly: int) -> int:
    """``run`` in a child process: 0, or minus the signal that it died of."""
    # No backend has been started yet, so a fork is safe and saves the imports.
    child = os.fork()
    if not child:
        run(root, **deadly)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    base, *deaths = sys.argv[1:]
    jax.config.update("jax_compilation_cache_dir", f"{base}/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for name in ("whole", *deaths):
        folder = Path(base, name)
        folder.mkdir()
        kind, _, number = name.partition("-")
        died = fork(folder, **{kind: int(number)}) if number else 0
        print(name, died, fork(folder), flush=True)  # noqa: T201
