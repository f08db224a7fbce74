"""What commands take beside the fields of an experiment."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class QuickstartArguments:
    """Teacher, label-only and distilled student on the embedded corpus, in a few minutes."""

    out: str = "runs"
    seed: int = 0


@dataclass(frozen=True)
class DistilArguments:
    """A student from your own files. Every field of an experiment can follow: --run.seed 1."""

    train: str
    """Labelled text: CoNLL, WikiAnn or TSV (plain or .gz), or a datasets folder or hub name.
    With --data.task classification text<TAB>class, or text<TAB>text<TAB>class."""
    dev: str
    """Labelled text that decides when to stop."""
    teacher: tuple[str, ...] = ()
    """Hugging Face folders or hub names (several: an ensemble); or --teacher.outputs FOLDER."""
    test: str = ""
    """Labelled text, read once at the end."""
    unlabelled: tuple[str, ...] = ()
    """Transfer text, one sentence a line."""
    student: str = "tiny"
    """tiny, small or base; or a transformer: l6-h256, l6-h384 or l12-h384."""
    strategy: str = "D4.2"
    name: str = "distil"
    on_mismatch: Literal["error", "skip"] = "error"
    """What a sentence that can't be used is: an error, or skipped and counted."""


@dataclass(frozen=True)
class EvalArguments:
    """Figures of a finished run. Reading the test set is counted in its report.json."""

    split: Literal["dev", "test"] = "dev"
