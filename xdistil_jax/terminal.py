"""What the commands do around a run: signals, messages, and the end of a process."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from xdistil_jax.lazy import TRAIN

if TYPE_CHECKING:
    from xdistil_jax.distill.loop import StopFlag


def say(message: str) -> None:
    """A message beside the output."""
    print(message, file=sys.stderr, flush=True)


def write(batches: Iterable[list[str]]) -> None:
    """Lines of output in UTF-8, each batch as soon as it is there."""
    sys.stdout.reconfigure(encoding="utf-8")
    for batch in batches:
        sys.stdout.write("".join(f"{line}\n" for line in batch))
        sys.stdout.flush()


def show_usage(text: str, arguments: Sequence[str]) -> NoReturn:
    """End with the usage, as an answer where it was asked for and as a complaint elsewhere."""
    if not {"-h", "--help"} & set(arguments):
        sys.exit(f"usage: {text}")
    print(f"usage: {text}")
    sys.exit(0)


@contextmanager
def signals() -> Iterator["StopFlag"]:
    """Ctrl-C and SIGTERM raise a flag while a plan runs, and interrupt at once elsewhere."""
    from xdistil_jax.distill.loop import StopFlag

    flag = StopFlag()

    def raise_flag(number: int, frame: FrameType | None) -> None:
        if flag.raised or not flag.listening:
            raise KeyboardInterrupt
        flag.raised = True

    before = {
        number: signal.signal(number, raise_flag) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def audience() -> dict[str, Any]:
    """Whom a run tells what it does: of several processes one speaks, and Orbax in none."""
    from xdistil_jax import hosts
    from xdistil_jax.distill import checkpoint  # noqa: F401 - absl makes its logger
    from xdistil_jax.report.writers import Progress

    # It logs a failed save five times, with tracebacks, and then raises it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return {"say": say, "progress": Progress()} if hosts.is_primary() else {}


def several() -> bool:
    """Is this one of several processes? Asks JAX only where it has been imported."""
    hosts = sys.modules.get("xdistil_jax.hosts")
    return hosts is not None and hosts.several()


def end(complaint: str) -> NoReturn:
    """End in failure; in one of several processes at once, or JAX would wait for the others."""
    if not several():
        sys.exit(complaint)
    print(complaint, file=sys.stderr, flush=True)
    os._exit(1)


def is_told(error: Exception) -> bool:
    """Was this raised by our own code to tell the user something, and not by a bug below?"""
    if isinstance(error, OSError):
        return True
    if not isinstance(error, ValueError | RuntimeError | ImportError):
        return False
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    package = str(Path(__file__).parent)
    return frame is not None and frame.tb_frame.f_code.co_filename.startswith(package)


@contextmanager
def told(name: str) -> Iterator[None]:
    """End the program ``name`` with a line for what its user did, with a traceback for a bug."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        end("interrupted; repeat the command to go on")
    except BrokenPipeError:
        # Whoever read us has enough; nothing more can be written, not even on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        end(f"{name} needs {error.name}, which is not installed: {TRAIN}")
    except Exception as error:
        if not is_told(error) and not several():
            raise
        end(f"{name}: {error}" if is_told(error) else traceback.format_exc())


def lines_of_stdin() -> Iterator[str]:
    """The lines that come in, without their ends.

    Raises:
        ValueError: naming the line that is not UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"stdin, line {number}: expected UTF-8 ({error.reason})") from error
