"""What gcloud does with a Cloud TPU, each verb once: create, wait, sync, run, tail, stop, delete.

Needs Python and gcloud, nothing else. Every command is printed before it runs.
"""

import json
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# https://cloud.google.com/tpu/docs/runtimes: the image for JAX, by the start of the type.
RUNTIMES = {
    "v6e-": "v2-alpha-tpuv6e",
    "v5p-": "v2-alpha-tpuv5",
    "v5litepod-": "v2-alpha-tpuv5-lite",
    **dict.fromkeys(("v4-", "v3-", "v2-"), "tpu-ubuntu2204-base"),
}
REQUEST, VM = "queued-resources", "tpu-vm"
JOB = "xdistil_jax/tpu/job.sh"
# States of a queued resource (cloud.google.com/tpu/docs/queued-resources), and one of ours.
ABSENT, ACTIVE, FAILED, SUSPENDED = "ABSENT", "ACTIVE", "FAILED", "SUSPENDED"
# What gcloud says of something that there isn't, and of nothing else.
_NOT_FOUND = "NOT_FOUND"
GONE = ("PREEMPTED", "TERMINATED", "STOPPED")
"""States of a TPU VM that will not come back by itself."""


class LaunchError(Exception):
    """What the user has to know, and what to do."""


class CallError(LaunchError):
    """A command has ended badly, perhaps only this once; it has said why itself."""


@dataclass(frozen=True)
class Pod:
    """A TPU by name: the queued resource and its one node are called alike."""

    name: str
    accelerator_type: str = "v5litepod-8"
    runtime_version: str = ""
    zone: str = ""
    project: str = ""
    bucket: str = ""
    spot: bool = False
    dry_run: bool = False
    poll_seconds: float = 30.0

    def command(self, group: str, verb: str, *arguments: str) -> list[str]:
        """A gcloud command as a list of arguments; zone and project are gcloud's own if empty."""
        given = {"--zone": self.zone, "--project": self.project}
        where = [f"{flag}={value}" for flag, value in given.items() if value]
        return ["gcloud", "compute", "tpus", group, verb, *arguments, *where, "--quiet"]

    def ssh(self, remote: str, *, worker: str = "all") -> list[str]:
        """``remote`` is run by the shell of the workers: the only shell there is."""
        return self.command(VM, "ssh", self.name, f"--worker={worker}", f"--command={remote}")

    def runtime(self) -> str:
        """The image of the machines.

        Raises:
            LaunchError: for a type of which it isn't known.
        """
        if self.runtime_version:
            return self.runtime_version
        for start, version in RUNTIMES.items():
            if self.accelerator_type.startswith(start):
                return version
        known = ", ".join(f"{start}N" for start in RUNTIMES)
        raise LaunchError(
            f"--accelerator-type {self.accelerator_type}: expected {known}; for any other name its "
            "image, too, with --runtime-version (https://cloud.google.com/tpu/docs/runtimes)"
        )


def call(pod: Pod, command: Sequence[str], *, capture: bool = False) -> tuple[int, str, str]:
    """Print a command and run it: its exit status and, with ``capture``, stdout and stderr."""
    print("+", shlex.join(command), flush=True)
    if pod.dry_run:
        return 0, "", ""
    try:
        done = subprocess.run(command, check=False, text=True, capture_output=capture)
    except FileNotFoundError:
        raise LaunchError(
            f"{command[0]} is not installed: https://cloud.google.com/sdk/docs/install, then "
            "gcloud auth login"
        ) from None
    return done.returncode, done.stdout or "", done.stderr or ""


def need(pod: Pod, command: Sequence[str]) -> None:
    """Run a command that has to end well.

    Raises:
        CallError: if it doesn't.
    """
    status, _, _ = call(pod, command)
    if status:
        raise CallError(f"the last command ended with status {status}: see its message above")


def create(pod: Pod) -> None:
    """Ask for the TPU; it is there once the state is ACTIVE."""
    what = [f"--accelerator-type={pod.accelerator_type}", f"--runtime-version={pod.runtime()}"]
    what += ["--spot"] if pod.spot else []
    need(pod, pod.command(REQUEST, "create", pod.name, f"--node-id={pod.name}", *what))


def delete(pod: Pod) -> None:
    """Delete request, machines and their disks; waits until they are gone."""
    need(pod, pod.command(REQUEST, "delete", pod.name, "--force"))


def state(pod: Pod) -> str:
    """The state of the queued resource, or ABSENT.

    Raises:
        CallError: if gcloud can't tell, with its complaint.
        LaunchError: if the request has failed, with Google's reason.
    """
    look = pod.command(REQUEST, "describe", pod.name, "--format=json(state)")
    status, out, complaint = call(pod, look, capture=True)
    if pod.dry_run:
        return ACTIVE
    if status:
        if _NOT_FOUND in complaint:
            return ABSENT
        raise CallError(complaint.strip() or f"gcloud ended with status {status}")
    found = json.loads(out)["state"]
    print(f"{pod.name}: {found['state']}", flush=True)
    if found["state"] == FAILED:
        reason = found.get("failedData", {}).get("error", {}).get("message", "no reason given")
        raise LaunchError(f"the request for {pod.name} has failed: {reason} Delete it, then retry")
    return found["state"]


def wait(pod: Pod) -> None:
    """Until the TPU is there.

    Raises:
        LaunchError: if it isn't asked for, or preempted.
    """
    while (found := state(pod)) != ACTIVE:
        if found in (ABSENT, SUSPENDED):
            raise LaunchError(f"{pod.name} is {found}: `delete` what is left of it, then `create`")
        time.sleep(pod.poll_seconds)


def pack(archive: Path) -> int:
    """The checkout as it stands, without what git ignores -> a .tar.gz; gives the number of files.

    Raises:
        LaunchError: if this is no checkout.
    """
    command = f"git -C {shlex.quote(str(ROOT))} ls-files -z --cached --others --exclude-standard"
    listed = subprocess.run(shlex.split(command), check=False, capture_output=True, text=True)
    if listed.returncode:
        raise LaunchError(f"{ROOT} is no git checkout, so what to copy is unknown: git clone it")
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            tar.add(ROOT / name, name)
    return len(names)


def sync(pod: Pod) -> None:
    """The checkout to every worker, and everything installed there; again after every change."""
    archive = Path(tempfile.gettempdir()) / f"xdistil-{pod.name}.tar.gz"
    if pod.dry_run:
        print(f"# {ROOT}, without what git ignores, goes into {archive}")
    else:
        print(f"# {pack(archive)} files of {ROOT} in {archive}", flush=True)
    target = f"{pod.name}:xdistil_jax.tar.gz"
    need(pod, pod.command(VM, "scp", str(archive), target, "--worker=all"))
    bucket = f"BUCKET={shlex.quote(pod.bucket)} " if pod.bucket else ""
    unpack = "mkdir -p xdistil_jax && tar -xzf xdistil_jax.tar.gz -C xdistil_jax"
    need(pod, pod.ssh(f"{unpack} && {bucket}bash xdistil_jax/tpu/setup_vm.sh"))


def run(pod: Pod, command: str) -> None:
    """Start ``command`` on every worker, in the background: the connection may break."""
    need(pod, pod.ssh(f"bash {JOB} start {shlex.quote(command)}"))


def stop(pod: Pod) -> None:
    """SIGTERM to the job of every worker: xdistil saves where it is, and `run` goes on there."""
    need(pod, pod.ssh(f"bash {JOB} stop"))


def tail(pod: Pod, worker: str) -> None:
    """The log of one worker as it grows, until Ctrl-C."""
    need(pod, pod.ssh(f"bash {JOB} tail", worker=worker))


def jobs(pod: Pod, command: str) -> list[str]:
    """What has become of ``command`` on each worker: absent, none, running, dead or exit N.

    Empty if no machine answers; absent where nothing was synced yet.
    """
    there = f"bash {JOB} status {shlex.quote(command)}"
    remote = f"if [ -e {JOB} ]; then {there}; else echo xdistil-job absent; fi"
    status, out, complaint = call(pod, pod.ssh(remote), capture=True)
    if status:
        print(complaint.strip(), file=sys.stderr)
        return []
    start = "xdistil-job "
    found = [line.removeprefix(start) for line in out.splitlines() if line.startswith(start)]
    if found:
        print(f"{pod.name}: {', '.join(found)}", flush=True)
    return found


def is_gone(pod: Pod) -> bool:
    """Was the machine taken away, though the request doesn't say so yet?

    Not if gcloud can't tell: then a healthy one may be out of reach, and what is gone is deleted.
    """
    look = pod.command(VM, "describe", pod.name, "--format=value(state)")
    status, out, complaint = call(pod, look, capture=True)
    return _NOT_FOUND in complaint if status else out.strip() in GONE


def status(pod: Pod) -> None:
    """The state of the request and, once it is ACTIVE, of the machines."""
    if state(pod) == ACTIVE:
        need(pod, pod.command(VM, "describe", pod.name, "--format=yaml(state,health)"))
