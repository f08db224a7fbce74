"""Contenders in processes of their own, timed in turn: no thread of one is awake in another's."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from math import ceil
from multiprocessing.connection import Connection
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from xdistil_jax.benchmark.subjects import Call, Contender

ROUNDS = 5
_WARMUP = 2
_ENOUGH = 500
"""Calls of a round."""
_PATIENCE_S = 5.0


class Task(NamedTuple):
    """A batch of so many rows and pieces; ``kind`` is ``pieces`` or ``text``."""

    kind: str
    rows: int
    length: int


class LeftOutError(RuntimeError):
    """A contender that can't be timed, and why."""

    def __init__(self, contender: "Contender", reason: str) -> None:
        super().__init__(reason)
        self.contender = contender


class Worker:
    """A contender's process."""

    def __init__(self, contender: "Contender") -> None:
        """Start it, and wait until its model is loaded.

        Raises:
            LeftOutError: with the reason, if it can't be.
        """
        self.contender = contender
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def seconds(self, task: Task, budget_s: float, least: int = 1) -> list[float]:
        """Of each call, ``least`` of them or more; the first ones of a task are no part of it.

        Raises:
            LeftOutError: if the process failed.
        """
        with suppress(OSError):
            self._pipe.send((task, budget_s, least))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(_PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self) -> list[float]:
        try:
            said = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(_PATIENCE_S)
            said = f"its process ended with code {self._process.exitcode}"
        if isinstance(said, str):
            self.close()
            raise LeftOutError(self.contender, said)
        return said


def take_turns(
    workers: Sequence[Worker], task: Task, budget_s: float, calls: int = ROUNDS
) -> dict["Contender", list[float]]:
    """The seconds of each one's calls, gathered in rounds, so that noise hits all of them.

    Each has ``budget_s``, and longer where ``calls`` of them take longer.

    Raises:
        LeftOutError: if one failed.
    """
    found: dict[Contender, list[float]] = {each.contender: [] for each in workers}
    for _ in range(ROUNDS):
        for each in workers:
            found[each.contender] += each.seconds(task, budget_s / ROUNDS, ceil(calls / ROUNDS))
    return found


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: median and, of at least 100 calls, the 99th percentile."""
    found = {"median_ms": 1e3 * float(np.median(seconds)), "calls": len(seconds)}
    if len(seconds) >= 100:
        found["p99_ms"] = 1e3 * float(np.percentile(seconds, 99))
    return found


def _serve(pipe: Connection, contender: "Contender") -> None:
    """In the contender's process: load it, and time what is asked for."""
    # All are timed on the CPU, where students are deployed; set before JAX is imported.
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Ctrl-C reaches us too; the command is told, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from xdistil_jax.benchmark.runtimes import prepare

        makers = prepare(contender)
        pipe.send([])
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])
        return
    calls: dict[Task, Call] = {}
    with suppress(EOFError, OSError):
        while True:
            task, budget_s, least = pipe.recv()
            try:
                if task not in calls:
                    calls[task] = makers[task.kind](task.rows, task.length)
                    for _ in range(_WARMUP):
                        calls[task]()
                found = _time(calls[task], budget_s, least)
            except Exception as error:
                pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])
                return
            pipe.send(found)


def _time(call: "Call", budget_s: float, least: int) -> list[float]:
    found: list[float] = []
    end = perf_counter() + budget_s
    while len(found) < least or (len(found) < _ENOUGH and perf_counter() < end):
        start = perf_counter()
        call()
        found.append(perf_counter() - start)
    return found
