"""What commands take beside the fields of an experiment, and how it is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


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


@dataclass(frozen=True)
class ExportArguments:
    """The student of a finished run as a folder to pass on: graphs and a model card."""

    to: str
    """The folder, which must not be there yet."""
    allow_drop: bool = False
    """Export an artefact, too, that is worse than the student on dev; the card says so."""
    licence: str = ""
    """Of the student, as the Hub names it (apache-2.0); those of data and teacher hold."""
    stablehlo: bool = False
    """Add a file for serving through jax.export, which loads for about half a year."""
    web: bool = False
    """Add web/index.html, which tags what is typed, in any browser and without a server."""
    web_packages: str = ""
    """A folder with onnxruntime-web's tarball from npm, for machines without a network."""


@dataclass(frozen=True)
class BenchArguments:
    """How fast an exported student is on this machine's CPU, beside its teacher and others."""

    teacher: str = "mbert-base"
    """mbert-base, xlm-r-base or xlm-r-large; or a checkpoint, of which config.json is read."""
    seconds: float = 2.0
    """Spent on each figure; those of a few calls have no 99th percentile."""


def parse(
    kind: Any, arguments: Sequence[str], command: str, default: Any = None, *, flags: bool = False
) -> Any:
    """A dataclass, from a command's arguments; with ``flags``, booleans take no value."""
    import tyro

    booleans = tyro.conf.FlagCreatePairsOff if flags else tyro.conf.FlagConversionOff
    config = (tyro.conf.AvoidSubcommands, booleans)
    given = {} if default is None else {"default": default}
    return tyro.cli(kind, args=arguments, prog=f"xdistil {command}", config=config, **given)


def parse_known(kind: Any, arguments: Sequence[str], command: str) -> tuple[Any, list[str]]:
    """As ``parse``, and the arguments that are none of its fields."""
    import tyro

    return tyro.cli(kind, args=arguments, prog=f"xdistil {command}", return_unknown_args=True)
