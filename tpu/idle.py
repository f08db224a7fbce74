"""Which share of a trace the devices idled: python tpu/idle.py FOLDER [--from S] [--to S]

FOLDER is what tpu/profile.sh has written. A device idles while none of its programs runs; on a CPU
the threads that run them count as the device. Seconds are counted from its first event. The longest
gaps are listed, so that evaluations can be told from waiting.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

# The threads of XLA's programs on the host; the others are Python's and the runtime's own.
_CPU_THREADS = ("tf_XLAEigen", "tf_XLAPjRtCpuClient")
_LISTED = 5


def devices(folder: Path) -> Iterator[tuple[str, Float[np.ndarray, "N 2"]]]:
    """(name, start and end in seconds of every event) for each device in a trace.

    Raises:
        FileNotFoundError: if there is no trace in ``folder``.
    """
    from jax.profiler import ProfileData

    found = sorted(folder.rglob("*.xplane.pb"))
    if not found:
        raise FileNotFoundError(f"{folder}: no trace (*.xplane.pb) there; see tpu/profile.sh")
    planes = list(ProfileData.from_file(str(found[-1])).planes)
    real = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in real or [plane for plane in planes if plane.name == "/host:CPU"]:
        lines = [line for line in plane.lines if _runs_programs(line.name, on_cpu=not real)]
        events = [(e.start_ns, e.start_ns + e.duration_ns) for line in lines for e in line.events]
        if events:
            times = np.array(events, np.float64) / 1e9
            yield plane.name, times - times.min()


def _runs_programs(line: str, *, on_cpu: bool) -> bool:
    # A line of steps covers whatever lies between the programs of a step.
    return line.startswith(_CPU_THREADS) if on_cpu else line != "Steps"


def gaps(events: Float[np.ndarray, "N 2"], start: float, end: float) -> Float[np.ndarray, "M 2"]:
    """When nothing ran between ``start`` and ``end``: (from, to), in seconds."""
    inside = events[(events[:, 1] > start) & (events[:, 0] < end)].clip(start, end)
    inside = inside[np.argsort(inside[:, 0])]
    # The end so far, before each event: where an event begins later, nothing ran between.
    so_far = np.concatenate([[start], np.maximum.accumulate(inside[:, 1])])
    begins = np.concatenate([inside[:, 0], [end]])
    idle = begins > so_far
    return np.stack([so_far[idle], begins[idle]], axis=1)


def main(arguments: list[str]) -> None:
    """Print the idle share and the longest gaps of each device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--from", dest="start", type=float, default=0.0, metavar="S")
    parser.add_argument("--to", dest="end", type=float, default=np.inf, metavar="S")
    given = parser.parse_args(arguments)
    try:
        for name, events in devices(given.folder):
            end = min(given.end, events[:, 1].max())
            found = gaps(events, given.start, end)
            sizes = found[:, 1] - found[:, 0]
            share = 100 * sizes.sum() / max(end - given.start, 1e-9)
            print(f"{name}: idle {share:.1f} % of {end - given.start:.2f} s")
            for at in np.argsort(-sizes)[:_LISTED]:
                print(f"  {1e3 * sizes[at]:8.1f} ms from {found[at, 0]:.3f} s")
    except FileNotFoundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
