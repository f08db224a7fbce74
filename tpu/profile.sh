#!/usr/bin/env bash
# A trace of what the devices do while a run is under way, for XProf or Perfetto. Works on a laptop, too.
#
#   [PYTHON=python3] tpu/profile.sh FOLDER AFTER SECONDS ARGUMENTS...
#   tpu/profile.sh ~/trace 120 3 quickstart --seed 1        as in `xdistil quickstart --seed 1`
#
# AFTER seconds from the start (let everything compile first) SECONDS are traced into FOLDER; the run goes on.
# On several machines run it on all workers: all have to take part in the run, and each traces its own chips.
set -euo pipefail
if (($# < 4)); then
  echo "usage: tpu/profile.sh FOLDER AFTER SECONDS ARGUMENTS..." >&2
  exit 2
fi
python=${PYTHON:-$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python}
exec "$python" - "$@" <<'PYTHON'
import sys
import threading
import time

import jax

from xdistil_jax.cli import main

folder, after, seconds, *arguments = sys.argv[1:]
over = threading.Event()


def trace():
    if over.wait(float(after)):
        print(f"profile: the run was over before {after} s: nothing traced", file=sys.stderr)
        return
    with jax.profiler.trace(folder):
        time.sleep(float(seconds))
    print(f"profile: {seconds} s traced into {folder}", file=sys.stderr)


thread = threading.Thread(target=trace)
thread.start()
try:
    main(arguments)
finally:
    over.set()
    thread.join()
PYTHON
