"""A Cloud TPU from your laptop: create, sync, run on all workers, tail, resume, delete.

    python tpu/launch.py resume --zone us-west4-a --spot --bucket BUCKET --delete-at-end \\
        'xdistil run experiments/wikiann.py d4.2 --run.out gs://BUCKET/runs'

Needs Python and gcloud, nothing else. Every command is printed before it runs; with --dry-run
nothing runs. What the errors of gcloud mean: tpu/README.md.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from machines import (
    ABSENT,
    ACTIVE,
    SUSPENDED,
    CallError,
    LaunchError,
    Pod,
    create,
    delete,
    is_gone,
    jobs,
    run,
    state,
    status,
    stop,
    sync,
    tail,
    wait,
)

# Beside the states of a queued resource: gcloud can't tell.
UNKNOWN = "UNKNOWN"
# So often in a row gcloud, or a machine whose state is good, may not answer, before we give up.
_SILENT = 10


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
