"""As a program: runs that die by kill -9: ``record-N`` at their N-th record, ``touch-N`` when they
touch the checkpoints for the N-th time, ``save-N-MS`` that long after their N-th save has begun, or
when all is done but the end if that comes first."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import jax
import numpy as np

from tests.distill.toys import STAGES, Records, make_params, make_training
from xdistil_jax import trees
from xdistil_jax.distill.checkpoint import Checkpoints
from xdistil_jax.distill.loop import run_plan
from xdistil_jax.files import write_atomic


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
        # At once: Orbax saves in a thread of its own, so death may come in the middle of this.
        write_atomic(self.path, "".join(json.dumps(each) + "\n" for each in self.written))


def kill_at_touch(number: int, root: str) -> None:
    left = [number]

    def hook(name: str, arguments: tuple) -> None:
        if name in ("open", "os.mkdir", "os.rename") and str(arguments[0]).startswith(root):
            left[0] -= 1
            if left[0] < 0:
                kill()

    sys.addaudithook(hook)


class Timed(Checkpoints):
    """Dies some milliseconds after its n-th save has begun, whatever the run does then."""

    def __init__(self, folder: Path, number: int, milliseconds: int) -> None:
        super().__init__(folder, every=0)
        self.left, self.milliseconds = number, milliseconds
        self.death: threading.Timer | None = None

    def save(self, saved) -> None:
        self.left -= 1
        if not self.left:
            self.death = threading.Timer(self.milliseconds / 1000, kill)
            self.death.start()
        super().save(saved)


def run(root: Path, death: str = "") -> None:
    """Run the plan in ``root``, or go on with it; leaves the parameters in ``params.npz``."""
    kind, *numbers = death.split("-")
    numbers = list(map(int, numbers))
    if kind == "touch":
        kill_at_touch(*numbers, str(root / "checkpoints"))
    timed = numbers if kind == "save" else (0, 0)
    checkpoints = Timed(root / "checkpoints", *timed)
    saved = checkpoints.peek() or {"records": 0}
    deadly = numbers[0] if kind == "record" else None
    writer = Journal(root / "metrics.jsonl", saved["records"], deadly)
    result = run_plan(make_training(checkpoints, writer), STAGES, make_params())
    if checkpoints.death:
        checkpoints.death.join()
    np.savez(root / "params.npz", **dict(trees.leaves(result.params)))


def fork(root: Path, death: str = "") -> int:
    """``run`` in a child process: 0, or minus the signal that it died of."""
    # No backend has been started yet, so a fork is safe and saves the imports.
    child = os.fork()
    if not child:
        run(root, death)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    base, *deaths = sys.argv[1:]
    jax.config.update("jax_compilation_cache_dir", f"{base}/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for name in ("whole", *deaths):
        folder = Path(base, name)
        folder.mkdir()
        died = fork(folder, name) if name != "whole" else 0
        torn = len(list(folder.glob("checkpoints/*tmp*")))
        print(name, died, torn, fork(folder), flush=True)  # noqa: T201
