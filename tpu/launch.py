"""A Cloud TPU from your laptop: create, sync, run on all workers, tail, resume, delete.

    python tpu/launch.py resume --zone us-west4-a --spot --bucket BUCKET --delete-at-end \\
        'xdistil run experiments/wikiann.py d4.2 --run.out gs://BUCKET/runs'

Needs Python and gcloud, nothing else. Every command is printed before it runs; with --dry-run
nothing runs. What the errors of gcloud mean: tpu/README.md.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
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
# States of a queued resource (cloud.google.com/tpu/docs/queued-resources), and two of ours.
ABSENT, ACTIVE, FAILED, SUSPENDED = "ABSENT", "ACTIVE", "FAILED", "SUSPENDED"
UNKNOWN = "UNKNOWN"
# What gcloud says of something that there isn't, and of nothing else.
_NOT_FOUND = "NOT_FOUND"
GONE = ("PREEMPTED", "TERMINATED", "STOPPED")
"""States of a TPU VM that will not come back by itself."""
# So often in a row gcloud, or a machine whose state is good, may not answer, before we give up.
_SILENT = 10


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


def resume(pod: Pod, command: str, *, delete_at_end: bool) -> None:
    """Bring ``command`` to its end, whatever is there: create, sync and run what is missing.

    After a preemption what is left is deleted and everything starts again; xdistil goes on from
    its checkpoint if the run folder lies on a disk that outlives the machines.

    Raises:
        LaunchError: if the request or the command has failed, or gcloud or the machines keep
            silent.
    """
    if pod.dry_run:
        _print_resume(pod, command, delete_at_end=delete_at_end)
        return
    silent = 0
    while silent < _SILENT:
        found = _look(pod)
        answered = found != UNKNOWN
        if found == ABSENT:
            create(pod)
        elif found == SUSPENDED:
            delete(pod)
        elif found == ACTIVE:
            told = jobs(pod, command)
            if told and set(told) == {"exit 0"}:
                break
            answered = _advance(pod, command, told)
        silent = 0 if answered else silent + 1
        time.sleep(pod.poll_seconds)
    else:
        there = "It may still be there, and billed"
        raise LaunchError(f"{pod.name} does not answer: see above. {there}")
    print(f"{pod.name}: finished")
    if delete_at_end:
        delete(pod)
    else:
        print(f"{pod.name} is still there, and billed: `delete` it when you are done")


def _look(pod: Pod) -> str:
    """The state, or UNKNOWN where gcloud can't tell: the next look may.

    Raises:
        LaunchError: if the request has failed.
    """
    try:
        return state(pod)
    except CallError as error:
        print(f"launch: {error}", file=sys.stderr)
        return UNKNOWN


def _advance(pod: Pod, command: str, told: Sequence[str]) -> bool:
    """Start the job on all workers if one of them lacks it; False if they could not be reached.

    Raises:
        LaunchError: if it has failed on one.
    """
    failed = [each for each in told if each.startswith("exit ") and each != "exit 0"]
    if failed:
        left = f"{pod.name} is still there, and billed"
        raise LaunchError(f"the command has failed ({failed[0]}): `tail` shows why. {left}")
    if not told:
        if is_gone(pod):
            delete(pod)
        return False
    if set(told) <= {"running", "exit 0"}:
        return True
    try:
        if "absent" in told:
            sync(pod)
        stop(pod)
        run(pod, command)
    except CallError as error:
        # It may have been preempted meanwhile: the next look at its state will tell.
        print(f"launch: {error}", file=sys.stderr)
        return False
    return True


def _print_resume(pod: Pod, command: str, *, delete_at_end: bool) -> None:
    """The commands of a run without incident, and those of a preemption."""
    create(pod)
    print("# until it says ACTIVE:")
    state(pod)
    sync(pod)
    run(pod, command)
    print(f"# every {pod.poll_seconds:g} s, until it says exit 0:")
    jobs(pod, command)
    print("# if it says SUSPENDED instead of ACTIVE, this, and everything from the start:")
    delete(pod)
    if delete_at_end:
        print("# in the end:")
        delete(pod)


def status(pod: Pod) -> None:
    """The state of the request and, once it is ACTIVE, of the machines."""
    if state(pod) == ACTIVE:
        need(pod, pod.command(VM, "describe", pod.name, "--format=yaml(state,health)"))


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="xdistil", help="of the TPU (default: xdistil)")
    common.add_argument("--accelerator-type", default="v5litepod-8", help="v5litepod-8, v6e-8, …")
    common.add_argument("--runtime-version", default="", help="default: the one for the type")
    common.add_argument("--zone", default="", help="default: gcloud's compute/zone")
    common.add_argument("--project", default="", help="default: gcloud's project")
    common.add_argument("--bucket", default="", help="mounted by `sync` at ~/bucket")
    common.add_argument("--spot", action="store_true", help="cheap, and taken away at any time")
    common.add_argument("--dry-run", action="store_true", help="print the commands only")
    common.add_argument("--poll-seconds", type=float, default=30.0, help="between two looks")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in (create, wait, sync, run, tail, stop, resume, status, delete):
        told = (verb.__doc__ or "").partition("\n")[0]
        each = verbs.add_parser(verb.__name__, parents=[common], help=told, description=told)
        if verb in (run, resume):
            each.add_argument("command", help="one argument: 'xdistil run FILE …'")
        if verb is tail:
            each.add_argument("--worker", default="0")
        if verb is resume:
            each.add_argument("--delete-at-end", action="store_true", help="if it ends well")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    given = vars(_parser().parse_args(arguments))
    verb: Callable[..., None] = globals()[given.pop("verb")]
    own = {
        name: given.pop(name) for name in ("command", "worker", "delete_at_end") if name in given
    }
    try:
        verb(Pod(**given), **own)
    except LaunchError as error:
        sys.exit(f"launch: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what was created is still there, and billed")


if __name__ == "__main__":
    main()
