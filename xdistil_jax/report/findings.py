"""A study's table, as Markdown: pure functions of what its runs have reported."""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from xdistil_jax import markdown
from xdistil_jax.report.classes import AnyScores, read_scores
from xdistil_jax.report.compare import Comparison
from xdistil_jax.report.metrics import retention

_NONE = "—"


class Finding(NamedTuple):
    """What one run says: student and teacher (None: outputs only) on dev, and on test if read.

    ``unseen`` is the score on test (dev) sentences that stand in neither train nor transfer text;
    ``pieces`` what the student was trained on, ``seconds`` how long that took.
    """

    dev: AnyScores
    teacher_dev: AnyScores | None
    test: AnyScores | None
    teacher_test: AnyScores | None
    unseen: AnyScores | None
    teacher_unseen: AnyScores | None
    parameters: int
    teacher_parameters: int | None
    pieces: int
    seconds: float
    latency: Mapping[str, Any] | None

    @classmethod
    def of(cls, report: Mapping[str, Any], pieces: int) -> "Finding":
        """From a run's report.json."""
        figures = report["figures"]
        dev, test = figures["dev"]["models"], figures.get("test", {}).get("models", {})
        last = test or dev
        teacher = dev.get("teacher")

        def scores(models: Mapping[str, Any], name: str, kind: str = "scores") -> AnyScores | None:
            found = models.get(name, {}).get(kind)
            return None if found is None else read_scores(found)

        return cls(
            scores(dev, "student"), scores(dev, "teacher"),
            scores(test, "student"), scores(test, "teacher"),
            scores(last, "student", "unseen"), scores(last, "teacher", "unseen"),
            dev["student"]["parameters"], teacher and teacher["parameters"], pieces,
            report.get("seconds", {}).get("student", 0.0), report.get("latency"),
        )  # fmt: skip


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.1f}" if known else _NONE


def _over_seeds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{pstdev(known):.1f}" if len(known) > 1 else _NONE


def _split(finding: Finding) -> tuple[AnyScores, AnyScores | None]:
    """Student and teacher on test if it was read, else on dev."""
    if finding.test is not None:
        return finding.test, finding.teacher_test
    return finding.dev, finding.teacher_dev


def _overall(found: Sequence[AnyScores]) -> list[str]:
    """Of classes: macro-F1 and MCC over all texts."""
    sums = [dict(scores.summary()) for scores in found]
    return [_mean([each.get(name) for each in sums]) for name in ("macro-F1", "MCC")]


def _row(name: str, findings: Sequence[Finding], paper: str, codes: Sequence[str]) -> list[str]:
    """The cells of a variant, whose findings are those of its seeds."""
    first = findings[0]
    last = [_split(finding) for finding in findings]
    kept = [None if teacher is None else retention(student, teacher) for student, teacher in last]
    dev = [finding.dev.mean for finding in findings]
    test = [None if finding.test is None else finding.test.mean for finding in findings]
    compression = first.teacher_parameters and first.teacher_parameters / first.parameters
    latency = first.latency
    speed = [_NONE, _NONE]
    if latency is not None:
        speed = [f"{latency[form]['ratio']:.1f}×" for form in ("32x32", "1x32")]
    return [
        name, _mean(dev), _mean(test), _over_seeds(test if first.test else dev),
        _mean([scores.std for scores, _ in last]), *_overall([scores for scores, _ in last]),
        _mean([finding.unseen and finding.unseen.mean for finding in findings]), _mean(kept),
        f"{first.parameters / 1e6:.2f}M", f"{compression:.1f}×" if compression else _NONE, *speed,
        f"{fmean(finding.pieces for finding in findings) / 1e6:.1f}M",
        f"{fmean(finding.seconds for finding in findings):,.0f}", paper or _NONE,
        *(_mean([scores.of_language(code) for scores, _ in last]) for code in codes),
    ]  # fmt: skip


def _codes(findings: Sequence[Finding]) -> list[str]:
    return sorted({code for finding in findings for code in _split(finding)[0].languages})


_HEAD = (
    *("", "dev", "test", "± seeds", "± languages", "macro-F1", "MCC", "unseen", "kept"),
    *("parameters", "smaller", "32 × 32", "1 × 32", "pieces", "seconds", "paper"),
)


def table(
    found: Mapping[str, Sequence[Finding]], paper: Mapping[str, str], *, by_language: bool
) -> str:
    """The table of all variants, teachers first; columns in which nothing stands are left out."""
    everything = [finding for findings in found.values() for finding in findings]
    codes = _codes(everything) if by_language else []
    kept = f"{everything[0].dev.figure} kept"
    names = [kept if each == "kept" else each for each in _HEAD]
    lines = [[*names, *codes], *_teachers(found, codes)]
    lines += [_row(name, every, paper.get(name, ""), codes) for name, every in found.items()]
    used = [i for i in range(len(lines[0])) if any(line[i] != _NONE for line in lines[1:])]
    head, *rows = ([line[i] for i in used] for line in lines)
    return markdown.table(head, rows)


def _teachers(found: Mapping[str, Sequence[Finding]], codes: Sequence[str]) -> list[list[str]]:
    """A line for each teacher; where there are several it names its students."""
    known: dict[tuple[str, ...], list[str]] = {}
    for name, findings in found.items():
        for finding in findings:
            if finding.teacher_dev is not None:
                names = known.setdefault(tuple(_teacher(finding, codes)), [])
                names += [] if name in names else [name]
    if len(known) == 1:
        return [["teacher", *cells] for cells in known]
    return [[f"teacher of {', '.join(names)}", *cells] for cells, names in known.items()]


def _teacher(finding: Finding, codes: Sequence[str]) -> list[str]:
    scores = _split(finding)[1]
    test = finding.teacher_test and finding.teacher_test.mean
    unseen = finding.teacher_unseen and finding.teacher_unseen.mean
    return [
        _mean([finding.teacher_dev.mean]), _mean([test]), _NONE, _mean([scores.std]),
        *_overall([scores]), _mean([unseen]), _NONE,
        f"{finding.teacher_parameters / 1e6:.2f}M", *[_NONE] * 6,
        *(_mean([scores.of_language(code)]) for code in codes),
    ]  # fmt: skip


def verdicts(compared: Mapping[tuple[str, str], Comparison]) -> str:
    """What the comparisons say of each hypothesis."""
    lines = []
    for (better, worse), found in compared.items():
        verdict = "holds" if found.low > 0 else "turned round" if found.high < 0 else "not shown"
        lines.append(
            f"- {better} over {worse}: {found.difference:+.1f} points "
            f"({found.low:+.1f} to {found.high:+.1f}, p = {found.p:.3f}): {verdict}."
        )
    return "\n".join(lines)
