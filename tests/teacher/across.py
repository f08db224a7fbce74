"""As a program: the toy cache, in one of several processes.

    python -m tests.teacher.across FOLDER [PROCESS EVENT]

``PROCESS`` dies by SIGKILL when it touches files below ``FOLDER`` for the ``EVENT``-th time.
"""

import sys
from pathlib import Path

import jax

from tests.teacher.toys import build_toy, kill_at, make_store, random_rows
from xdistil_jax import hosts

TEXT = random_rows(120)

if __name__ == "__main__":
    hosts.connect(heartbeat_seconds=10)
    folder, *death = sys.argv[1:]
    if death and int(death[0]) == jax.process_index():
        kill_at(int(death[1]), folder)
    options = {"devices": len(jax.devices()), "shard_bytes": 6_000, "say": print}
    build_toy(Path(folder), make_store(TEXT), **options)
