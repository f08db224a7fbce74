"""The report as text: a table for the terminal, a Markdown page; pure functions of figures."""

import json
import textwrap
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from xdistil_jax import markdown
from xdistil_jax.report import compilations
from xdistil_jax.report.classes import AnyScores, read_scores

Line = list[str]

_LABEL_WIDTH = 28
_WIDTH = 98
_MODELS_SIDE_BY_SIDE = 5
_NONE = "—"
_REQUIRED = ("title", "split", "test_readings", "seed", "models", "configuration", "versions")


class Row(NamedTuple):
    """One model of the table: a column there, as there are 41 languages and few models.

    ``unseen`` scores the sentences that occur in neither train nor transfer. ``kept`` is in
    percent; ``compression`` and the speed-ups: how many times smaller and faster than the teacher.
    ``zero_shot`` are languages of which no label was seen.
    """

    name: str
    scores: AnyScores
    unseen: AnyScores | None
    parameters: int
    compression: float | None
    kept: float | None
    speedup_batch: float | None
    speedup_one: float | None
    zero_shot: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        unseen = None if self.unseen is None else self.unseen.to_json()
        own = {"scores": self.scores.to_json(), "unseen": unseen}
        return self._asdict() | own | {"zero_shot": list(self.zero_shot)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Row":
        """The inverse of ``to_json``."""
        unseen = None if record["unseen"] is None else read_scores(record["unseen"])
        scores = read_scores(record["scores"])
        zero_shot = tuple(record.get("zero_shot", ()))
        return cls(**{**record, "scores": scores, "unseen": unseen, "zero_shot": zero_shot})


def compose(
    rows: Sequence[Row],
    *,
    title: str,
    split: str,
    test_readings: int,
    seed: int,
    configuration: Mapping[str, Any],
    versions: Mapping[str, Any],
    latency: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The report as a dict of JSON types, for ``report.json`` and ``render``.

    ``test_readings`` counts how often the test set was read so far, ``latency`` is what
    ``bench.models_latency`` gives, ``notes`` are sentences for the top of the page.
    """
    return {
        "title": title,
        "split": split,
        "test_readings": test_readings,
        "seed": seed,
        "models": [row.to_json() for row in rows],
        "latency": None if latency is None else dict(latency),
        "configuration": dict(configuration),
        "versions": dict(versions),
        "notes": list(notes),
    }


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"


def _times(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}×"


def _spread(scores: AnyScores) -> str:
    return _NONE if scores.mean is None else f"{scores.mean:.1f} ± {scores.std:.1f}"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count >= 100_000 else f"{count:,}"


def _languages(scores: Sequence[AnyScores | None], zero_shot: Collection[str] = ()) -> list[Line]:
    known = [each for each in scores if each is not None]
    names = sorted(set(chain.from_iterable(each.languages for each in known)))
    marked = {name: f"{name} (zero-shot)" if name in zero_shot else name for name in names}
    return [
        [marked[name], *(_percent(each.of_language(name) if each else None) for each in scores)]
        for name in names
    ]


def _over_all(scores: Sequence[AnyScores | None], before: str = "") -> list[Line]:
    """Mean over languages, then the figures over all sentences."""
    known = [each for each in scores if each is not None]
    lines = [[f"{before}mean ± std", *(_spread(each) if each else _NONE for each in scores)]]
    for place, (name, _) in enumerate(known[0].summary() if known else ()):
        values = (each.summary()[place][1] if each else None for each in scores)
        lines.append([f"{before}{name}", *map(_percent, values)])
    return lines


def _figure(rows: Sequence[Row]) -> str:
    return rows[0].scores.figure if rows else "F1"


def _zero_shot(rows: Sequence[Row]) -> set[str]:
    return set(chain.from_iterable(row.zero_shot for row in rows))


def _apart(rows: Sequence[Row]) -> list[Line]:
    """Languages with labels and without, where there are both; nothing otherwise."""

    def among(row: Row, zero_shot: bool) -> str:
        chosen = row.scores.languages.items()
        kept = {name: each for name, each in chosen if (name in row.zero_shot) == zero_shot}
        return _spread(row.scores._replace(languages=kept))

    if not any(row.zero_shot for row in rows):
        return []
    return [
        ["with labels", *(among(row, zero_shot=False) for row in rows)],
        ["zero-shot", *(among(row, zero_shot=True) for row in rows)],
    ]


def _summary(rows: Sequence[Row]) -> list[Line]:
    return [
        *_over_all([row.scores for row in rows]),
        *_apart(rows),
        [f"% of teacher's {_figure(rows)} kept", *(_percent(row.kept) for row in rows)],
        ["parameters", *(_size(row.parameters) for row in rows)],
        ["compression", *(_times(row.compression) for row in rows)],
        ["latency ratio, batch 32", *(_times(row.speedup_batch) for row in rows)],
        ["latency ratio, batch 1", *(_times(row.speedup_one) for row in rows)],
    ]


def _unseen(rows: Sequence[Row]) -> list[Line]:
    """Summary on sentences that occur in neither train nor transfer; nothing if not measured."""
    if all(row.unseen is None for row in rows):
        return []
    found = [row.unseen for row in rows]
    return [
        *_over_all(found, "unseen: "),
        [
            "unseen: sentences",
            *(f"{sum(each.sentences.values()):,}" if each else _NONE for each in found),
        ],
    ]


def _undefined(scores: Sequence[AnyScores | None]) -> str:
    names = sorted(set(chain.from_iterable(each.undefined for each in scores if each)))
    if not names:
        return ""
    return f"No gold entity, so no F1 and no part in the mean: {', '.join(names)}."


def _wrap(text: str, width: int = _WIDTH) -> str:
    return textwrap.fill(text, width)


def table(rows: Sequence[Row]) -> str:
    """Figures by language for the terminal, languages down, models across, under 100 columns."""
    if len(rows) > _MODELS_SIDE_BY_SIDE:
        cut = _MODELS_SIDE_BY_SIDE
        return f"{table(rows[:cut])}\n\n{table(rows[cut:])}"
    width = (_WIDTH - _LABEL_WIDTH) // max(len(rows), 1) - 2
    names = [row.name if len(row.name) <= width else f"{row.name[: width - 1]}…" for row in rows]
    width = max([12, *map(len, names)])

    def line(cells: Line) -> str:
        return cells[0][:_LABEL_WIDTH].ljust(_LABEL_WIDTH) + "".join(
            f"  {cell:>{width}}" for cell in cells[1:]
        )

    rule = "-" * (_LABEL_WIDTH + len(rows) * (width + 2))
    lines = [line([_figure(rows), *names]), rule]
    scores, zero_shot = [row.scores for row in rows], _zero_shot(rows)
    lines += [line(cells) for cells in _languages(scores, zero_shot)]
    for block in (_summary(rows), _unseen(rows)):
        lines += [rule, *map(line, block)] if block else []
    undefined = _undefined(scores)
    return "\n".join([*lines, *([_wrap(undefined)] if undefined else [])])


def _details(rows: Sequence[Row]) -> list[str]:
    """All figures of each model, by language and by type or class."""
    parts = []
    for row in rows:
        heading, names, details = row.scores.details()
        lines = [
            [name, *map(_percent, values), f"{support:,}", "" if count is None else f"{count:,}"]
            for name, values, support, count in details
        ]
        parts += [f"## {heading}"] * (not parts)
        parts.append(f"### {row.name}\n\n{markdown.table(['', *names], lines)}")
    return parts


def _latency(latency: Mapping[str, Any]) -> str:
    lines = [
        [
            shape,
            *(
                f"{each[who][field]:.2f}"
                for who in ("teacher", "student")
                for field in ("median_ms", "p90_ms")
            ),
            _times(each["ratio"]),
        ]
        for shape, each in latency.items()
    ]
    header = ["batch × length", "teacher ms", "p90", "student ms", "p90", "ratio of medians"]
    return (
        "## Latency\n\nForward passes on the same batches, compile time excluded.\n\n"
        + markdown.table(header, lines)
    )


def _provenance(report: Mapping[str, Any], explained: str) -> str:
    readings = report["test_readings"]
    return (
        f"Scored on the **{report['split']}** split; the test set was read {readings} "
        f"{'time' if readings == 1 else 'times'} so far. Seed {report['seed']}. {explained}"
    )


def render(report: Mapping[str, Any]) -> str:
    """The Markdown page of a report that ``compose`` made.

    Raises:
        ValueError: naming the fields that the report lacks.
    """
    missing = [field for field in _REQUIRED if field not in report]
    if missing:
        raise ValueError(f"report: missing {', '.join(missing)}; build it with page.compose")
    rows = [Row.from_json(record) for record in report["models"]]
    scores = [row.scores for row in rows]
    unseen = [row.unseen for row in rows]
    header = ["", *(row.name for row in rows)]
    explained = rows[0].scores.explained if rows else ""
    parts = [f"# {report['title']}", _provenance(report, explained), *report.get("notes", ())]
    parts += [
        markdown.table(header, _languages(scores, _zero_shot(rows)) + _summary(rows)),
        _undefined(scores),
    ]
    if _unseen(rows):
        parts += [
            "## Sentences in neither train nor transfer",
            markdown.table(header, _languages(unseen, _zero_shot(rows)) + _unseen(rows)),
            _undefined(unseen),
        ]
    if report.get("latency"):
        parts.append(_latency(report["latency"]))
    parts += _details(rows)
    if lines := compilations.rows([report]):
        parts += ["## Compilations", markdown.table(compilations.HEADER, lines)]
    for heading in ("configuration", "versions"):
        text = json.dumps(report[heading], indent=2, ensure_ascii=False)
        parts.append(f"## {heading.capitalize()}\n\n```json\n{text}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"
