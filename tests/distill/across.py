"""As a program: the toy run, in one of several processes; the primary one leaves what it found.

    python -m tests.distill.across FOLDER [PROCESS DEATH]

``DEATH`` is the number of calls after which ``PROCESS`` dies by SIGKILL, or, negative, after which
it is asked to stop by SIGTERM.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from tests.distill.toys import (
    STAGES,
    Records,
    Teacher,
    make_feeds,
    make_model,
    make_params,
    make_sampler,
    make_training,
)
from xdistil_jax import hosts, trees
from xdistil_jax.distill.checkpoint import Checkpoints
from xdistil_jax.distill.loop import InterruptedRunError, run_plan
from xdistil_jax.distill.rates import hparams
from xdistil_jax.distill.state import start_state
from xdistil_jax.distill.step import train_call
from xdistil_jax.sharding import replicate
from xdistil_jax.terminal import signals


def first_gradient(devices: int) -> dict[str, np.ndarray]:
    """What the first step of the joint stage has put into Adam's first moments."""
    stage, model = STAGES[1], make_model(devices)
    h = replicate(hparams(stage, 10), model.mesh)
    state = start_state(make_params(), stage.program, jax.random.key(0), h)
    feed = next(make_feeds(model, make_sampler(0.5), steps=1))
    state, tables = replicate((state, Teacher().arrays), model.mesh)
    after, _ = train_call(model, stage.program)(state, tables, feed, h)
    moments = next(each for each in after.opt_state if hasattr(each, "mu"))
    return {path: np.asarray(leaf) for path, leaf in trees.leaves(moments.mu)}


class _Deadly(Records):
    """Dies, or is asked to stop, after so many calls."""

    def __init__(self, process: int, death: int) -> None:
        mine = process == jax.process_index()
        super().__init__(after=lambda count: mine and count == abs(death) and self._meet(death))

    @staticmethod
    def _meet(death: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM if death < 0 else signal.SIGKILL)


def run(root: Path, process: int = -1, death: int = 0) -> None:
    """Leaves records.json, params.npz and gradient.npz."""
    devices, primary = len(jax.devices()), hosts.is_primary()
    gradient = first_gradient(devices)
    writer = _Deadly(process, death)
    checkpoints = Checkpoints(root / "checkpoints", every=0)
    with signals() as stop:
        stop.listening = True
        training = make_training(checkpoints, writer, stop, devices=devices)
        result = run_plan(training, STAGES, make_params())
    if primary:
        np.savez(root / "gradient.npz", **gradient)
        np.savez(root / "params.npz", **dict(trees.leaves(result.params)))
        (root / "records.json").write_text(json.dumps(writer.written))
    hosts.barrier()


if __name__ == "__main__":
    hosts.connect(heartbeat_seconds=10)
    try:
        run(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    except InterruptedRunError:
        os._exit(7)
