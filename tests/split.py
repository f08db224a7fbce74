"""As a program: a teacher split over the devices of all processes; the primary leaves what it says.

    python -m tests.split DATA FOLDER WAYS

It is stopped once on the way, and goes on from its checkpoint.
"""

import json
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.pod import experiment
from tests.test_pipeline import StopAfter
from xdistil_jax import (
    Session,
    cache_teacher,
    encode_text,
    evaluate,
    hosts,
    load_corpus,
    prepare_teacher,
    trees,
)
from xdistil_jax.distill.loop import InterruptedRunError, StopFlag
from xdistil_jax.evaluation import report_run
from xdistil_jax.sharding import is_spread
from xdistil_jax.terminal import end


def carry_out(data: str, out: Path, ways: int) -> None:
    """Leaves teacher.json, with its figures, and stream.npz, what the cache says of some rows."""
    chosen = replace(
        experiment,
        data=replace(experiment.data, root=data),
        teacher=replace(experiment.teacher, tensor_parallel=ways),
        run=replace(experiment.run, out=str(out), latency=ways > 0),
    )
    corpus, flag = load_corpus(chosen.data), StopFlag()
    stopped = Session.start(chosen, stop=flag, progress=StopAfter(9, flag))
    with pytest.raises(InterruptedRunError):
        prepare_teacher(stopped, corpus)
    session = Session.start(chosen)
    teacher = prepare_teacher(session, corpus)
    kernel = teacher.params["layer_1"]["feed_forward"]["up"]["kernel"]
    assert is_spread(kernel) == (ways > 0)
    text = encode_text(session, corpus, teacher)
    cache = cache_teacher(session, text, teacher)
    rows = np.arange(24)
    streamed = cache.stream(rows, int(text.ours.lengths[rows].max()))
    scores, _ = evaluate(session, teacher, corpus.dev)
    # No process tries to time alone what it has a part of.
    report_run(session, out, corpus, {"teacher": teacher}, evaluate_test=False)
    if hosts.is_primary():
        leaves = {path: np.asarray(leaf, np.float32) for path, leaf in trees.leaves(streamed)}
        np.savez(out / "stream.npz", **leaves)
        figures = {"f1": scores.mean, "fingerprint": teacher.fingerprint}
        (out / "teacher.json").write_text(json.dumps(figures))
    hosts.barrier()


if __name__ == "__main__":
    hosts.connect(heartbeat_seconds=10)
    try:
        carry_out(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    except Exception:
        end(traceback.format_exc())
