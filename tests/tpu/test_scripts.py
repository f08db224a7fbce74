"""The shell scripts of tpu/: their syntax, the job of one machine, a trace, what XPK is told."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "tpu"
SCRIPTS = sorted(FOLDER.glob("*.sh"))


def bash(*arguments, **environment):
    return subprocess.run(
        ["bash", *map(str, arguments)], env={**os.environ, **environment},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_is_valid_bash(script):
    done = bash("-n", script)
    assert done.returncode == 0, done.stderr
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_every_script_is_in_the_readme():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(SCRIPTS) >= 4
    for path in (*SCRIPTS, FOLDER / "launch.py"):
        assert f"`{path.name}`" in text


@pytest.fixture
def job(tmp_path):
    def call(*arguments):
        return bash(FOLDER / "job.sh", *arguments, HOME=str(tmp_path))

    yield call
    call("stop")


def until(job, command, wanted):
    for _ in range(200):
        found = job("status", command).stdout.strip()
        if found == f"xdistil-job {wanted}":
            return
        time.sleep(0.05)
    raise AssertionError(f"expected {wanted}, found {found}")


def test_the_life_of_a_job(job, tmp_path):
    until(job, "echo said; exit 7", "none")
    assert job("start", "echo said; exit 7").returncode == 0
    until(job, "echo said; exit 7", "exit 7")
    assert (tmp_path / "xdistil-job" / "log").read_text() == "said\n"
    until(job, "another", "none")
    assert job("start", "sleep 1000").returncode == 0
    until(job, "sleep 1000", "running")
    until(job, "another", "running")
    assert job("stop").returncode == 0
    until(job, "sleep 1000", "dead")
    assert job("stop").returncode == 0
    assert job("bogus").returncode == 2


def test_a_job_may_save_before_it_stops(job, tmp_path):
    command = f"trap 'sleep 0.5; echo saved > {tmp_path}/saved; exit 1' TERM; sleep 1000 & wait"
    assert job("start", command).returncode == 0
    until(job, command, "running")
    time.sleep(0.3)
    assert job("stop").returncode == 0
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_profile_leaves_a_trace(tmp_path):
    done = bash(
        FOLDER / "profile.sh", tmp_path / "trace", "0", "0.3", "plan", "d4.2", PYTHON=sys.executable
    )
    assert done.returncode == 0, done.stderr
    assert "ce/embed" in done.stdout
    assert "0.3 s traced" in done.stderr
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert bash(FOLDER / "profile.sh").returncode == 2


def test_xpk_is_told_this():
    given = {"PROJECT": "p", "ZONE": "us-west4-a", "CLUSTER": "c", "BUCKET": "b", "DRY_RUN": "1"}
    command = "xdistil run experiments/wikiann.py d4.2 --run.out /bucket/runs"
    done = bash(FOLDER / "xpk.sh", "first", command, TMPDIR="/tmp", **given)
    assert done.returncode == 0, done.stderr
    archive, copy, create = (shlex.split(line)[1:] for line in done.stdout.splitlines())
    code = "/tmp/xdistil-first.tar.gz"
    assert archive == ["git", "archive", "--format=tar.gz", f"--output={code}", "HEAD"]
    assert copy == ["gcloud", "storage", "cp", code, "gs://b/code/first.tar.gz", "--project=p"]
    unpack = "mkdir -p /xdistil && cd /xdistil && tar -xzf /bucket/code/first.tar.gz"
    assert create == [
        *("xpk", "workload", "create", "--workload=first", "--cluster=c", "--project=p"),
        *("--zone=us-west4-a", "--tpu-type=v5litepod-8", "--num-slices=1", "--max-restarts=50"),
        *("--storage=xdistil", "--docker-image=python:3.12"),
        f"--command={unpack} && pip install --quiet '.[tpu]' && {command}",
    ]
    assert bash(FOLDER / "xpk.sh", "first", command).returncode == 2
