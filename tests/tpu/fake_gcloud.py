"""Google's side for the tests of launch.py: `gcloud`, with folders for machines.

In FAKE_CLOUD: `lives.json` (for each request that is made, the states that it goes through; the
last one stays), `workers/N` (the home of a machine) and `calls.jsonl` (all arguments). Commands
over ssh are really run there, by bash.

Besides Google's states there are UNAVAILABLE (this one look fails) and, while the request says
ACTIVE: UNREACHABLE (no call for the machines comes through), PREEMPTED and LOST (they are gone, and
the TPU says so, or is unknown).
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
WORKERS = CLOUD / "workers"
NOW = CLOUD / "now.json"
TROUBLE = CLOUD / "trouble"
SERVICE = "UNAVAILABLE: The service is currently unavailable."


def shell(home, command):
    environment = {**os.environ, "HOME": str(home)}
    return subprocess.run(
        ["bash", "-c", command], env=environment, cwd=home, check=False
    ).returncode


def create():
    lives = json.loads((CLOUD / "lives.json").read_text())
    if NOW.exists():
        sys.exit("ERROR: ALREADY_EXISTS")
    NOW.write_text(json.dumps(lives.pop(0)))
    (CLOUD / "lives.json").write_text(json.dumps(lives))
    for number in range(int(os.environ.get("FAKE_WORKERS", "2"))):
        (WORKERS / str(number)).mkdir(parents=True)


def take_machines():
    for home in WORKERS.glob("*"):
        shell(home, "[ ! -e xdistil_jax ] || bash xdistil_jax/tpu/job.sh stop")
        shutil.rmtree(home)


def describe():
    if not NOW.exists():
        sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: not found")
    state, *rest = json.loads(NOW.read_text())
    NOW.write_text(json.dumps(rest or [state]))
    if state == "UNAVAILABLE":
        sys.exit(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) {SERVICE}")
    if state in ("SUSPENDED", "PREEMPTED", "LOST"):
        take_machines()
    TROUBLE.write_text(state)
    state = "ACTIVE" if state in ("UNREACHABLE", "PREEMPTED", "LOST") else state
    failed = {"failedData": {"error": {"message": "Quota exceeded."}}} if state == "FAILED" else {}
    sys.stdout.write(json.dumps({"state": {"state": state, **failed}}))


def describe_machines():
    trouble = TROUBLE.read_text() if TROUBLE.exists() else ""
    if trouble == "UNREACHABLE":
        sys.exit(f"ERROR: (gcloud.compute.tpus.tpu-vm.describe) {SERVICE}")
    if trouble == "LOST":
        sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: not found")
    sys.stdout.write("PREEMPTED" if trouble == "PREEMPTED" else "READY")


def main(arguments):
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    group, verb, name, *rest = arguments[2:]
    homes = sorted(WORKERS.glob("*"))
    if (group, verb) == ("queued-resources", "create"):
        create()
    elif (group, verb) == ("queued-resources", "describe"):
        describe()
    elif (group, verb) == ("queued-resources", "delete"):
        take_machines()
        NOW.unlink()
    elif verb == "scp":
        for home in homes:
            shutil.copy(name, home / rest[0].partition(":")[2])
    elif verb == "ssh":
        flags = dict(each.split("=", 1) for each in rest if "=" in each)
        chosen = homes if flags["--worker"] == "all" else [WORKERS / flags["--worker"]]
        if not homes or (TROUBLE.exists() and TROUBLE.read_text() == "UNREACHABLE"):
            sys.exit("ERROR: no machine answers")
        sys.exit(max(shell(home, flags["--command"]) for home in chosen))
    else:
        describe_machines()


main(sys.argv[1:])
