"""Several processes of one command on this machine, and a parent that says which of them failed.

A process that dies takes the others with it, from deep inside their collectives and without a word
that helps; so the parent watches, ends them, and says how to go on. Standard library only.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

COMMANDS = ("quickstart", "distil", "run", "table", "pretrain")
"""Those that know of other processes."""


@dataclass(frozen=True)
class LaunchArguments:
    """A command in several processes on this machine; one that dies is named."""

    processes: int
    devices: int = 0
    """Virtual CPU devices in each; 0: the devices that there are."""
    grace: float = 60.0
    """Seconds between SIGTERM and the end."""


# How long processes get to end by themselves once the first of them has failed.
_AFTERMATH_S = 5.0


def launch(
    command: Sequence[str],
    processes: int,
    devices: int = 0,
    grace_s: float = 60.0,
    *,
    say: Callable[[str], None],
) -> int:
    """Run ``command``, which calls ``hosts.connect``, in ``processes`` processes.

    Gives the exit code.

    ``devices`` CPU devices in each (0: whatever there is). Ctrl-C and SIGTERM are passed on to all;
    after ``grace_s`` seconds they are killed.

    Raises:
        ValueError: for less than one process.
    """
    if processes < 1:
        raise ValueError(f"--processes is {processes}: expected 1 or more")
    children = [
        subprocess.Popen(list(command), env=environment, start_new_session=True)
        for environment in _environments(processes, devices)
    ]
    asked: list[float] = []

    def stop(*_: object) -> None:
        asked.append(time.monotonic())
        for child in children:
            child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        failed = _watch(children, asked, grace_s)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        say("stopped; what is finished is on disk: repeat the command to go on")
        return 1
    if failed is None:
        return 0
    say(f"{_describe(failed, children)}; repeat the command to go on")
    code = children[failed].returncode
    return code if code > 0 else 128 - code


def _environments(processes: int, devices: int) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = {**os.environ, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    if devices:
        flags = os.environ.get("XLA_FLAGS", "")
        common["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    return [{**common, "JAX_PROCESS_ID": str(number)} for number in range(processes)]


def _watch(
    children: Sequence[subprocess.Popen], asked: Sequence[float], grace_s: float
) -> int | None:
    """Wait for all; gives the number of the first that failed."""
    first, since = None, 0.0
    while any(child.poll() is None for child in children):
        now = time.monotonic()
        if first is None:
            first, since = _culprit(children), now
        if first is not None and now - since > _AFTERMATH_S and not asked:
            return first
        if asked and now - asked[0] > grace_s:
            return first
        time.sleep(0.05)
    return _culprit(children) if first is None else first


def _culprit(children: Sequence[subprocess.Popen]) -> int | None:
    """Of those that have failed, the one that pulled the others down.

    Its survivors abort, or end with an error of the collectives, within milliseconds.
    """
    if not any([child.poll() for child in children]):
        return None
    # The first to be seen dead may have been pulled down by one asked before it: so all once more.
    codes = {number: child.returncode for number, child in enumerate(children) if child.poll()}
    return min(codes, key=lambda n: (codes[n] == -signal.SIGABRT, codes[n] > 0), default=None)


def _describe(failed: int, children: Sequence[subprocess.Popen]) -> str:
    code = children[failed].returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    text = f"process {failed} of 0 to {len(children) - 1} {how}"
    return f"{text}, and the others, which can't go on without it, were ended"
