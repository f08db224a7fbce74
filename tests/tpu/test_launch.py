"""launch.py: the exact gcloud commands, and a pod's life over a preemption to its deletion."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "tpu" / "launch.py"
WHERE = "--zone=us-west4-a --project=p --quiet"
STATUS = (
    "if [ -e xdistil_jax/tpu/job.sh ]; then bash xdistil_jax/tpu/job.sh status 'echo hello'; "
    "else echo xdistil-job absent; fi"
)


def launch(*arguments, **options):
    return subprocess.run(
        [sys.executable, str(LAUNCH), *arguments],
        capture_output=True, text=True, check=False, timeout=120, **options,
    )  # fmt: skip


def commands(done):
    """The printed commands, without `gcloud compute tpus` and the flags of WHERE."""
    found = []
    for line in done.stdout.splitlines():
        if line.startswith("+ "):
            words = shlex.split(line)[1:]
            assert words[:3] == ["gcloud", "compute", "tpus"]
            assert words[-3:] == WHERE.split()
            found.append(words[3:-3])
    return found


def dry(verb, *arguments):
    done = launch(verb, "--dry-run", "--zone", "us-west4-a", "--project", "p", *arguments)
    assert done.returncode == 0, done.stderr
    return commands(done)


def ssh(command, worker="all", name="xdistil"):
    return ["tpu-vm", "ssh", name, f"--worker={worker}", f"--command={command}"]


CREATE = [
    *("queued-resources", "create", "xdistil", "--node-id=xdistil"),
    *("--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite"),
]
DESCRIBE = ["queued-resources", "describe", "xdistil", "--format=json(state)"]
DELETE = ["queued-resources", "delete", "xdistil", "--force"]
ARCHIVE = "/tmp/xdistil-xdistil.tar.gz"
UNPACK = "mkdir -p xdistil_jax && tar -xzf xdistil_jax.tar.gz -C xdistil_jax && "
SYNC = [
    ["tpu-vm", "scp", ARCHIVE, "xdistil:xdistil_jax.tar.gz", "--worker=all"],
    ssh(f"{UNPACK}bash xdistil_jax/tpu/setup_vm.sh"),
]
RUN = ssh("bash xdistil_jax/tpu/job.sh start 'echo hello'")


@pytest.fixture(autouse=True)
def _temporary_files(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("create",), [CREATE]),
        (("create", "--spot"), [[*CREATE, "--spot"]]),
        (("wait",), [DESCRIBE]),
        (("sync",), SYNC),
        (("run", "echo hello"), [RUN]),
        (("tail",), [ssh("bash xdistil_jax/tpu/job.sh tail", worker="0")]),
        (("tail", "--worker", "3"), [ssh("bash xdistil_jax/tpu/job.sh tail", worker="3")]),
        (("stop",), [ssh("bash xdistil_jax/tpu/job.sh stop")]),
        (("status",), [DESCRIBE, ["tpu-vm", "describe", "xdistil", "--format=yaml(state,health)"]]),
        (("delete",), [DELETE]),
        (("resume", "echo hello"), [CREATE, DESCRIBE, *SYNC, RUN, ssh(STATUS), DELETE]),
        (
            ("resume", "echo hello", "--delete-at-end"),
            [CREATE, DESCRIBE, *SYNC, RUN, ssh(STATUS), DELETE, DELETE],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) else "",
)
def test_dry_run_prints_the_exact_commands(arguments, expected):
    assert dry(*arguments) == expected


def test_dry_run_needs_no_gcloud_and_runs_nothing(tmp_path):
    (tmp_path / "gcloud").write_text("#!/bin/sh\ntouch ran\n")
    (tmp_path / "gcloud").chmod(0o755)
    environment = {**os.environ, "PATH": str(tmp_path)}
    for verb in ("create", "wait", "sync", "tail", "stop", "status", "delete"):
        done = launch(verb, "--dry-run", env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_the_image_is_chosen_by_the_type(kind, image):
    (found,) = dry("create", "--accelerator-type", kind)
    assert f"--runtime-version={image}" in found
    (own,) = dry("create", "--accelerator-type", kind, "--runtime-version", "mine")
    assert "--runtime-version=mine" in own


def test_what_the_remote_shell_reads_is_one_word():
    (found,) = dry("run", "xdistil run 'a b.py' --run.out ~/bucket && echo $HOME")
    remote = found[-1].removeprefix("--command=")
    assert shlex.split(remote)[3] == "xdistil run 'a b.py' --run.out ~/bucket && echo $HOME"
    (_, setup) = dry("sync", "--bucket", "b; rm -rf ~")
    assert setup[-1].endswith("&& BUCKET='b; rm -rf ~' bash xdistil_jax/tpu/setup_vm.sh")


def test_mistakes_are_answered(tmp_path):
    done = launch("create", "--dry-run", "--accelerator-type", "v9-8")
    assert done.returncode == 1
    assert "--accelerator-type v9-8: expected v6e-N" in done.stderr
    done = launch("create", env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "gcloud is not installed: https://cloud.google.com/sdk" in done.stderr
    assert "required: command" in launch("run").stderr


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A fake cloud with two machines; gives a function that says which lives requests will have."""
    tools = tmp_path / "tools"
    tools.mkdir()
    fake = pathlib.Path(__file__).with_name("fake_gcloud.py")
    # What comes from the network is left out: uv makes an environment that does nothing.
    python = ".venv/bin/python"
    stubs = {
        "gcloud": f'exec {shlex.quote(sys.executable)} {shlex.quote(str(fake))} "$@"',
        "uv": f"mkdir -p .venv/bin; printf '#!/bin/sh\\n' > {python}; chmod +x {python}",
    }
    for name, body in stubs.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CLOUD", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "disk").mkdir()

    def live(*lives):
        (tmp_path / "lives.json").write_text(json.dumps(lives))
        return tmp_path

    yield live
    live()
    launch("delete")


def done_by(cloud):
    """The verbs that gcloud was called with, repeats taken together."""
    calls = [json.loads(line) for line in (cloud / "calls.jsonl").read_text().splitlines()]
    verbs = []
    for call in calls:
        verb = call[3]
        if verb == "ssh":
            remote = next(each for each in call if each.startswith("--command="))
            verb = next(n for n in ("setup", " start ", " stop", " status ") if n in remote).strip()
        if verb not in verbs[-1:]:
            verbs.append(verb)
    return verbs


def resume(command, *options):
    return launch("resume", command, "--poll-seconds", "0.1", *options)


# The first life of a machine hangs for ever, and leaves something on a disk that outlives it.
HANGS_ONCE = 'me=$FAKE_CLOUD/disk/${HOME##*/}; [ -e "$me" ] || { touch "$me"; exec sleep 1000; }'


def test_from_nothing_over_a_preemption_to_the_end(cloud):
    first = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDED"]
    folder = cloud(first, ["PROVISIONING", "ACTIVE"])
    done = launch(
        *("resume", f"{HANGS_ONCE}; echo ran >> $FAKE_CLOUD/disk/ends"),
        *("--spot", "--poll-seconds", "0.1", "--delete-at-end"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    begin = ["describe", "create", "describe", "status", "scp", "setup", "stop", "start"]
    assert done_by(folder)[:8] == begin
    again = ["delete", "describe", "create", "describe", "status", "scp", "setup", "stop", "start"]
    place = done_by(folder).index("delete")
    assert done_by(folder)[place : place + 9] == again
    assert done_by(folder)[-2:] == ["status", "delete"]
    # Both machines came to the end, once; nothing is left.
    assert (folder / "disk" / "ends").read_text() == "ran\nran\n"
    assert not (folder / "now.json").exists()
    assert "xdistil: finished" in done.stdout


@pytest.mark.parametrize("how", ["PREEMPTED", "LOST"])
def test_machines_that_are_gone_are_asked_for_again_before_the_request_says_so(cloud, how):
    folder = cloud(["ACTIVE", how], ["ACTIVE"])
    done = resume(HANGS_ONCE)
    assert done.returncode == 0, done.stdout + done.stderr
    verbs = done_by(folder)
    assert (verbs.count("create"), verbs.count("delete")) == (2, 1)


def test_a_machine_that_cannot_be_reached_for_a_while_is_kept(cloud):
    folder = cloud(["ACTIVE", "UNREACHABLE", "UNREACHABLE", "ACTIVE"])
    done = resume("exit 0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "delete" not in done_by(folder)
    assert done_by(folder).count("start") == 1


def test_a_machine_that_stays_out_of_reach_is_given_up_and_not_deleted(cloud):
    folder = cloud(["ACTIVE", "UNREACHABLE"])
    done = resume("exit 0", "--delete-at-end")
    assert done.returncode == 1
    assert "xdistil does not answer: see above. It may still be there, and billed" in done.stderr
    assert "delete" not in done_by(folder)
    assert (folder / "now.json").exists()


def test_looks_that_fail_are_repeated(cloud):
    nine = ["UNAVAILABLE"] * 9
    folder = cloud([*nine, "PROVISIONING", *nine, "ACTIVE", "UNAVAILABLE", "ACTIVE"])
    done = resume("exit 0", "--delete-at-end")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done_by(folder).count("start") == 1
    assert done_by(folder)[-2:] == ["status", "delete"]
    assert "launch: ERROR: (gcloud.compute.tpus.queued-resources.describe)" in done.stderr


def test_looks_that_fail_ten_times_in_a_row_end_it(cloud):
    folder = cloud(["UNAVAILABLE"])
    done = resume("exit 0")
    assert done.returncode == 1
    assert done.stderr.count("The service is currently unavailable.") == 10
    assert done_by(folder) == ["describe", "create", "describe"]


def test_what_is_there_is_not_made_again(cloud):
    folder = cloud(["ACTIVE"])
    for arguments in (("create",), ("wait",), ("sync",), ("run", "exit 0")):
        done = launch(*arguments, "--poll-seconds", "0.1")
        assert done.returncode == 0, done.stderr
    done = launch("resume", "exit 0", "--poll-seconds", "0.1")
    assert done.returncode == 0, done.stderr
    assert "still there, and billed" in done.stdout
    assert done_by(folder)[:5] == ["create", "describe", "scp", "setup", "start"]
    assert set(done_by(folder)[5:]) == {"describe", "status"}


def test_another_command_is_run_anew(cloud):
    folder = cloud(["ACTIVE"])
    for command in ("echo a >> $FAKE_CLOUD/disk/a", "echo b >> $FAKE_CLOUD/disk/b"):
        assert launch("resume", command, "--poll-seconds", "0.1").returncode == 0
    assert (folder / "disk" / "a").read_text() == "a\na\n"
    assert (folder / "disk" / "b").read_text() == "b\nb\n"
    assert done_by(folder).count("scp") == 1


def test_the_checkout_lies_on_every_machine(cloud):
    folder = cloud(["ACTIVE"])
    assert launch("create").returncode == 0
    done = launch("sync")
    assert done.returncode == 0, done.stderr
    for number in "01":
        there = folder / "workers" / number / "xdistil_jax"
        assert (there / "setup.cfg").read_bytes() == (ROOT / "setup.cfg").read_bytes()
        assert not (there / ".git").exists()


def test_a_failed_command_is_not_repeated(cloud):
    folder = cloud(["ACTIVE"])
    done = launch("resume", '[ "${HOME##*/}" = 0 ] || exit 3', "--poll-seconds", "0.1")
    assert done.returncode == 1
    assert "the command has failed (exit 3): `tail` shows why" in done.stderr
    assert done_by(folder).count("start") == 1


def test_a_refused_request_is_told_with_googles_reason(cloud):
    folder = cloud(["WAITING_FOR_RESOURCES", "FAILED"])
    done = launch("resume", "exit 0", "--poll-seconds", "0.1")
    assert done.returncode == 1
    assert "the request for xdistil has failed: Quota exceeded." in done.stderr
    assert done_by(folder) == ["describe", "create", "describe"]
    assert "SUSPENDED: `delete`" in _wait_for(cloud, "SUSPENDED")


def _wait_for(cloud, state):
    launch("delete")
    cloud([state])
    launch("create")
    return launch("wait", "--poll-seconds", "0.1").stderr


def test_a_second_job_is_refused_and_a_stopped_one_is_seen(cloud):
    cloud(["ACTIVE"])
    for arguments in (("create",), ("sync",), ("run", "sleep 1000")):
        assert launch(*arguments).returncode == 0
    again = launch("run", "sleep 1000")
    assert again.returncode == 1
    assert "a job is running already" in again.stderr
    assert launch("stop").returncode == 0
    assert launch("run", "exit 0").returncode == 0
