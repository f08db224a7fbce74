"""Where a run's figures go while it trains: JSON lines, TensorBoard, a progress bar.

The loop hands every writer two kinds of records: ``write`` at each evaluation point (``stage``,
``stage_name``, ``step``, ``global_step``, and figures such as ``train/repr`` or ``dev/f1``), and
``progress`` after each jitted call (``stage``, ``stages``, ``stage_name``, ``step``, ``steps``,
``loss``, ``tokens_per_s``). Stages count from 0, F1 lies between 0 and 1, as in ``scoring``.
"""

import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import TextIOBase
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from xdistil_jax.files import naming_full_disk, write_atomic

Record = Mapping[str, Any]
_PLACE = ("stage", "step", "global_step")


@runtime_checkable
class Writer(Protocol):
    """What the loop is handed."""

    def write(self, record: Record) -> None:
        """Take the figures of an evaluation point."""
        ...

    def progress(self, record: Record) -> None:
        """Take the state after a jitted call; must be cheap."""
        ...

    def close(self) -> None:
        """Finish; may be called twice."""
        ...


def _plain(value: Any) -> Any:
    """JSON types: numpy and jax scalars as numbers, NaN and infinity (not in JSON) as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class JsonLines:
    """An append-only file, one JSON object on a line, each flushed when it is written.

    ``keep=n`` cuts the file back to its first n lines, so that a resumed run repeats none; a last
    line that was torn by a crash is dropped.
    """

    def __init__(self, path: str | Path, keep: int | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.splitlines(keepends=True)
        if whole and not whole[-1].endswith(b"\n"):
            whole.pop()
        if keep is not None and len(whole) < keep:
            warnings.warn(
                f"{self.path}: expected at least {keep} whole lines, found {len(whole)}; the run "
                "goes on, but the figures of those evaluations are lost",
                stacklevel=2,
            )
        kept = whole[:keep]
        if b"".join(kept) != content:
            write_atomic(self.path, b"".join(kept))
        self._lines = len(kept)
        self._file = self.path.open("a", encoding="utf-8")

    @property
    def lines(self) -> int:
        """Whole lines in the file: what a checkpoint stores, to be given back as ``keep``."""
        return self._lines

    def write(self, record: Record) -> None:
        """Append one line."""
        line = json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n"
        with naming_full_disk(self.path.parent):
            self._file.write(line)
            self._file.flush()
        self._lines += 1

    def progress(self, record: Record) -> None:
        """Nothing: only evaluation points are kept."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _scalars(record: Record, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record, those of nested mappings as ``outer/inner``."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}/")
        elif hasattr(value, "item") or isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)


class TensorBoard:
    """Scalars by global step. On resume, ``purge_step`` hides that step and all later ones."""

    def __init__(self, folder: str | Path, *, purge_step: int | None = None) -> None:
        from tensorboardX import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, record: Record) -> None:
        """Write every number of the record."""
        step = int(record["global_step"])
        for name, value in _scalars(record):
            if name not in _PLACE:
                self._writer.add_scalar(name, value, step)
        with naming_full_disk(self._folder):
            self._writer.flush()

    def progress(self, record: Record) -> None:
        """Nothing: only evaluation points are kept."""

    def close(self) -> None:
        """Write what is left and close the file."""
        with naming_full_disk(self._folder):
            self._writer.close()


class Progress:
    """A bar for each stage; nothing at all where the output is no terminal."""

    def __init__(self, stream: TextIOBase | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = not self._stream.isatty()
        self._bar: Any = None
        self._stage: Any = None
        self._f1: str | None = None

    def write(self, record: Record) -> None:
        """Remember the dev F1, to show it beside the loss."""
        if record.get("dev/f1") is not None:
            self._f1 = f"{100 * float(record['dev/f1']):.1f}"

    def progress(self, record: Record) -> None:
        """Move the bar; a new stage gets a new one."""
        if self._quiet:
            return
        if self._bar is None or record["stage"] != self._stage:
            self._open(record)
        shown = {}
        if record.get("loss") is not None:
            shown["loss"] = f"{float(record['loss']):.4g}"
        if self._f1 is not None:
            shown["dev F1"] = self._f1
        if record.get("tokens_per_s") is not None:
            shown["tokens/s"] = f"{float(record['tokens_per_s']):,.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(int(record["step"]) - self._bar.n)

    def _open(self, record: Record) -> None:
        from tqdm import tqdm

        self.close()
        self._stage = record["stage"]
        place = f"{self._stage + 1}/{record['stages']} " if record.get("stages") else ""
        self._bar = tqdm(
            desc=f"{place}{record['stage_name']}",
            total=record.get("steps"),
            initial=int(record["step"]),
            unit="step",
            file=self._stream,
            dynamic_ncols=True,
        )

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@dataclass(frozen=True)
class Writers:
    """Several writers as one."""

    writers: tuple[Writer, ...]

    def write(self, record: Record) -> None:
        """Hand the record to each, in order."""
        for writer in self.writers:
            writer.write(record)

    def progress(self, record: Record) -> None:
        """Hand the record to each, in order."""
        for writer in self.writers:
            writer.progress(record)

    def close(self) -> None:
        """Close each, even if one of them fails."""
        with ExitStack() as stack:
            for writer in reversed(self.writers):
                stack.callback(writer.close)
