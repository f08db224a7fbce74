"""The whole pipeline in several real processes: the commands of a user, and what they leave.

Nearly all of the time is compilation, which each process does for itself.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain

import pytest

from xdistil_jax import DataSpec, load_corpus

ROOT = pathlib.Path(__file__).parents[1]
SENTENCES = {"de": 40, "ru": 40, "vi": 1}
"""Of train, by language: in all a number that no batch divides, as is that of dev."""
DEV = 19
XDISTIL = (sys.executable, "-m", "xdistil_jax")
COMPILED_SOON = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Flags that halve the time of compilation, and change what is compiled."""

pytestmark = pytest.mark.slow


def write_text(root: pathlib.Path) -> None:
    """LANGUAGE/train.txt and dev.txt, of the embedded corpus."""
    corpus = load_corpus(DataSpec(synthetic=True, languages=tuple(SENTENCES)))
    for language, most in SENTENCES.items():
        for split, every, count in (("train", corpus.train, most), ("dev", corpus.dev, DEV)):
            chosen = [each for each in every if each.language == language][:count]
            blocks = ("\n".join(map("\t".join, zip(s.words, s.tags, strict=True))) for s in chosen)
            path = root / language / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a run in so many processes, by the command that a user gives."""
    text, compiled = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("compiled")
    write_text(text)
    environment = {
        **os.environ, "XLA_FLAGS": COMPILED_SOON, "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip

    def begin(processes: int, out: pathlib.Path, *options: str) -> subprocess.Popen:
        several = ("launch", "--processes", str(processes), "--devices", "2")
        return subprocess.Popen(
            [
                *XDISTIL, *(several if processes > 1 else ()), "run", "tests/pod.py",
                "--data.root", str(text), "--run.out", str(out), *options,
            ],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return begin


def finish(run: subprocess.Popen, code: int = 0) -> str:
    """What it has said at its end."""
    said, _ = run.communicate(timeout=1200)
    assert run.returncode == code, said
    return said


def left(out: pathlib.Path) -> tuple[dict[str, float], list[dict]]:
    """The figures in the one report of a run folder, and every line of its metrics."""
    [report] = out.rglob("report.json")
    models = json.loads(report.read_text())["figures"]["dev"]["models"]
    lines = [path.read_text().splitlines() for path in sorted(out.rglob("metrics.jsonl"))]
    assert len(lines) == 2
    records = [json.loads(line) for line in chain(*lines)]
    scores = {name: each["scores"]["mean"] for name, each in models.items()}
    return scores, records


def alike(found: pathlib.Path, wanted: pathlib.Path) -> None:
    scores, records = left(found)
    own_scores, own_records = left(wanted)
    # Nothing learned would be nothing compared.
    assert min(own_scores.values()) > 10
    assert scores == pytest.approx(own_scores, abs=0.2)
    for mine, its in zip(own_records, records, strict=True):
        assert its.keys() == mine.keys()
        for name, value in mine.items():
            if name.startswith(("held_out/", "train/")):
                assert its[name] == pytest.approx(value, rel=1e-4, abs=1e-4), mine
            elif name not in ("dev/f1", "watched"):
                assert its[name] == value


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """The run folder of one process on one device."""
    out = tmp_path_factory.mktemp("alone")
    finish(start(1, out))
    return out


@pytest.mark.parametrize("processes", [2, 4])
def test_a_run_in_several_processes_is_the_run_in_one(start, alone, tmp_path, processes):
    said = finish(start(processes, tmp_path))
    assert said.count("mean ± std") == 2, "one of them prints the table"
    alike(tmp_path, alone)


def test_a_run_that_two_began_is_finished_by_one(start, alone, tmp_path):
    run = start(2, tmp_path)
    while run.poll() is None:
        lines = [path.read_text().count("\n") for path in tmp_path.rglob("D4.2-*/metrics.jsonl")]
        if lines and lines[0] >= 4:
            break
        time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    assert "repeat the command to go on" in finish(run, 1)
    assert not list(tmp_path.rglob("report.json"))
    finish(start(1, tmp_path))
    alike(tmp_path, alone)


def process(run: subprocess.Popen, number: int) -> int:
    """The id of one of the processes that ``run`` has launched."""
    children = pathlib.Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    mine = f"JAX_PROCESS_ID={number}".encode()
    [found] = [
        each for each in children
        if mine in pathlib.Path(f"/proc/{each}/environ").read_bytes().split(b"\0")
    ]  # fmt: skip
    return int(found)


def until(word: str, lines: Iterable[str]) -> Iterator[str]:
    """The lines up to and with the first that has ``word``."""
    for line in lines:
        yield line
        if word in line:
            return


def test_a_process_that_is_silent_counts_as_dead_when_the_run_says_so(start, tmp_path):
    run = start(2, tmp_path, "--run.heartbeat-s", "10")
    while run.poll() is None and not list(tmp_path.glob("encoded/*")):
        time.sleep(0.1)
    os.kill(process(run, 1), signal.SIGSTOP)
    stopped = time.monotonic()
    said = "".join(until("heartbeat", run.stdout))
    # 100 seconds are the default.
    assert time.monotonic() - stopped < 80
    # Not by communicate(), which would miss what the line's reader has read ahead.
    said += run.stdout.read()
    run.wait()
    # Whoever is left ends in Python, or is ended by JAX's runtime, whichever hears of it first;
    # each has its own words.
    assert run.returncode in (1, 128 + signal.SIGABRT)
    assert re.search(r"Task 1 heartbeat timeout|stopped sending heartbeats\):\n1\n", said)
    assert "repeat the command to go on" in said
