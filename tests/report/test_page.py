"""The report says every figure, where it comes from, and fits the page."""

import json
import re
from statistics import fmean, pstdev

import pytest

from xdistil_jax.report import page
from xdistil_jax.report.metrics import Figures, Scores, score

CODES = [f"{first}{second}" for first in "abcdefg" for second in "uvwxyz"][:41]


def _scores(shift=0.0, undefined=()):
    languages = {
        code: Figures(None, None, None, None, 0)
        if code in undefined
        else Figures(71.0, 69.0, 70.0 + number / 10 - shift, 60.0, 12)
        for number, code in enumerate(CODES)
    }
    overall = Figures(81.0, 79.0, 80.5 - shift, 77.25, 1234)
    return Scores(languages, {"PER": overall}, overall, dict.fromkeys(CODES, 50))


def _rows(count=3):
    teacher = page.Row("teacher", _scores(), _scores(1), 22_700_000, None, None, None, None)
    student = page.Row("distilled", _scores(2.5), None, 98_765, 229.84, 96.54, 12.34, 5.6)
    return [teacher, student, *[student._replace(name=f"model {n}") for n in range(count - 2)]]


def _report(rows=None, **changes):
    facts = {
        "title": "quickstart d4.2",
        "split": "test",
        "test_readings": 1,
        "seed": 7,
        "configuration": {"student": {"width": 100}},
        "versions": {"jax": "0.10.2"},
        "latency": {
            "32x32": {
                "teacher": {"median_ms": 100.0, "p90_ms": 110.0, "repeats": 9},
                "student": {"median_ms": 8.1, "p90_ms": 9.0, "repeats": 9},
                "ratio": 12.34,
            }
        },
        "notes": ["Synthetic text proves the pipeline and not quality."],
    }
    return page.compose(rows or _rows(), **(facts | changes))


def _line(text, label):
    return next(line for line in text.splitlines() if re.match(rf"\|? ?{re.escape(label)}", line))


def test_table_has_a_line_for_each_language_and_a_column_for_each_model():
    text = page.table(_rows(2))
    for code, figures in _scores().languages.items():
        assert _line(text, code).split() == [code, f"{figures.f1:.1f}", f"{figures.f1 - 2.5:.1f}"]
    assert _line(text, "F1").split() == ["F1", "teacher", "distilled"]
    assert _line(text, "mean ± std").split()[3:] == ["72.0", "±", "1.2", "69.5", "±", "1.2"]
    assert _line(text, "micro-F1").split()[1:] == ["80.5", "78.0"]
    assert _line(text, "% of teacher's F1 kept").split()[-2:] == ["—", "96.5"]
    assert _line(text, "parameters").split()[1:] == ["22.70M", "98,765"]
    assert _line(text, "compression").split()[1:] == ["—", "229.8×"]
    assert _line(text, "latency ratio, batch 32").split()[4:] == ["—", "12.3×"]
    assert _line(text, "latency ratio, batch 1 ").split()[4:] == ["—", "5.6×"]
    assert _line(text, "unseen: mean").split()[4:] == ["71.0", "±", "1.2", "—"]
    assert _line(text, "unseen: sentences").split()[2:] == ["2,050", "—"]


@pytest.mark.parametrize("count", [2, 3, 5, 6, 12])
def test_table_is_narrow_whatever_the_number_and_names_of_models(count):
    rows = [
        row._replace(name=f"{number} {'a long name ' * 9}")
        for number, row in enumerate(_rows(count))
    ]
    text = page.table(rows)
    assert max(map(len, text.splitlines())) < 100
    for number in range(count):
        assert len(re.findall(rf"  {number} a long", text)) == 1


def test_languages_without_labels_stand_apart():
    rows = [row._replace(zero_shot=("au",)) for row in _rows()]
    text = page.table(rows)
    everything = {name: each.f1 for name, each in rows[0].scores.languages.items()}
    assert "au (zero-shot)" in text
    assert _line(text, "zero-shot").split()[1:4] == [f"{everything.pop('au'):.1f}", "±", "0.0"]
    mean, std = fmean(everything.values()), pstdev(everything.values())
    assert _line(text, "with labels").split()[2:5] == [f"{mean:.1f}", "±", f"{std:.1f}"]
    report = json.loads(json.dumps(_report(rows)))
    assert "| au (zero-shot) |" in page.render(report)
    assert "| with labels |" in page.render(report)
    assert "zero-shot" not in page.table(_rows()) + page.render(_report())
    # A report of an older version knows nothing of it.
    del report["models"][0]["zero_shot"]
    assert page.Row.from_json(report["models"][0]).zero_shot == ()


def test_the_unseen_block_is_there_only_if_measured():
    rows = [row._replace(unseen=None) for row in _rows()]
    assert "unseen" not in page.table(rows)
    assert "neither train nor transfer" not in page.render(_report(rows))
    assert "neither train nor transfer" in page.render(_report())


def test_undefined_languages_are_named():
    rows = [row._replace(scores=_scores(undefined=("bv",)), unseen=None) for row in _rows()]
    for text in (page.table(rows), page.render(_report(rows))):
        assert "no part in the mean: bv." in text
        assert _line(text, "bv").count("—") == 3
    assert "no part in the mean" not in page.table(_rows())


def test_page_says_where_the_figures_come_from():
    text = page.render(_report())
    for part in (
        "# quickstart d4.2",
        "**test** split",
        "read 1 time so far",
        "Seed 7",
        "Synthetic text proves",
        '"width": 100',
        '"jax": "0.10.2"',
        "| 32x32 | 100.00 | 110.00 | 8.10 | 9.00 | 12.3× |",
        "| all (micro) | 81.0 | 79.0 | 80.5 | 77.2 | 1,234 | 2,050 |",
        "| type PER | 81.0 |",
    ):
        assert part in text
    assert "read 2 times" in page.render(_report(test_readings=2))


def test_every_markdown_table_is_rectangular():
    rows = [row._replace(name=row.name + " a|b") for row in _rows()]
    tables = re.findall(r"(?:^\|.*\n)+", page.render(_report(rows)), re.MULTILINE)
    assert len(tables) == 3 + len(rows)
    for found in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in found.splitlines()}) == 1


def test_report_survives_json_and_rendering_is_pure():
    report = json.loads(json.dumps(_report(), allow_nan=False))
    assert report == _report()
    before = json.dumps(report)
    assert page.render(report) == page.render(_report())
    assert json.dumps(report) == before
    assert [page.Row.from_json(record) for record in report["models"]] == _rows()


def test_a_report_without_its_provenance_is_refused():
    report = _report()
    del report["split"], report["test_readings"]
    with pytest.raises(ValueError, match="missing split, test_readings"):
        page.render(report)


def test_a_run_in_which_nothing_could_be_scored_still_has_a_page():
    scores = score([["O"]], [["O"]], ["en"])
    row = page.Row("teacher", scores, scores, 1, None, None, None, None)
    assert "— " in page.render(_report([row], latency=None))
    assert "no part in the mean: en." in page.table([row])


def test_what_was_compiled_is_on_the_page():
    compiled = {"programs": {"program 0": {"compiled": 2, "found": 1, "seconds": 0.0}}}
    found = page.render({**_report(), "compilations": compiled})
    assert "## Compilations" in found
    assert _line(found, "program 0").split("|")[1:-1] == [" program 0 ", " 2 ", " 1 ", " 0.0 "]
    # A report of a version that counted no programs.
    older = {**_report(), "compilations": {"misses": 1, "hits": 0, "seconds": 1.0}}
    assert "## Compilations" not in page.render(older)
