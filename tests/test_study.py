"""A study: its runs are those of `xdistil run`, and its table says what they report."""

import dataclasses
import json

import pytest

from tests.test_pipeline import compiled_once, shrunk
from xdistil_jax import cli, pipeline
from xdistil_jax.study import Study, Variant, conduct, report, student_pieces

# A fixture, used by every test of this file.
assert compiled_once


def variants(out):
    whole = shrunk(out, "D0-S")
    smaller = dataclasses.replace(whole, student=dataclasses.replace(whole.student, embed=4))
    return Variant("embed 8", whole, "88.6"), Variant("embed 4", smaller)


@pytest.fixture(scope="module")
def conducted(tmp_path_factory, compiled_once):
    out = tmp_path_factory.mktemp("study")
    study = Study(
        "A study", variants(out), seeds=(0, 1), orders=(("embed 8", "embed 4"),),
        note="Mark this.", by_language=True,
    )  # fmt: skip
    said = []
    return study, conduct(study, say=said.append), said, out


def cells(text):
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = lines
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_each_run_is_that_of_its_experiment(conducted):
    study, found, said, out = conducted
    assert [each.report["seed"] for each in found["embed 4"]] == [0, 1]
    again = pipeline.run(study.variants[0].experiment)
    assert again.folder == found["embed 8"][0].folder
    assert len(list((out / "quickstart").glob("teacher-*"))) == 1, "all share one teacher"
    order = [message for message in said if message.startswith("A study: ")]
    assert [each.removeprefix("A study: ") for each in order] == [
        "embed 8, seed 0", "embed 4, seed 0", "embed 8, seed 1", "embed 4, seed 1"
    ]  # fmt: skip


def test_a_row_may_have_seeds_of_its_own(conducted):
    """And is compared at those that both rows have."""
    study, found, _, _ = conducted
    first, second = study.variants
    fewer = dataclasses.replace(study, variants=(first, dataclasses.replace(second, seeds=(1,))))
    said = []
    results = conduct(fewer, say=said.append)
    assert [each.report["seed"] for each in results["embed 4"]] == [1]
    assert sum(message.startswith("A study: embed 8") for message in said) == 2
    last = {name: results[-1:] for name, results in found.items()}
    verdict = report(study, last).splitlines()[-1]
    assert (
        report(fewer, results).splitlines()[-1] == verdict != report(study, found).splitlines()[-1]
    )
    assert fewer.at((0,)).variants[1].seeds == ()
    assert fewer.at((0,)).seeds == (0,)
    assert fewer.at(()) is fewer
    strange = dataclasses.replace(second, seeds=(1, 7))
    with pytest.raises(ValueError, match=r"row 'embed 4' has seed 7, the study \(0, 1\)"):
        dataclasses.replace(study, variants=(first, strange))


def test_the_table_says_what_the_runs_report(conducted):
    study, found, _, _ = conducted
    text = report(study, found)
    assert text.startswith("## A study\n\nWhat is kept, and smaller, refer to the run's own")
    assert "\n\nMark this.\n\n" in text
    table = cells(text)
    assert list(table) == ["teacher", "embed 8", "embed 4"]
    for name, results in found.items():
        figures = [each.report["figures"]["dev"]["models"] for each in results]
        students = [each["student"]["scores"] for each in figures]
        means = [each["mean"] for each in students]
        row = table[name]
        assert row["dev"] == f"{sum(means) / 2:.1f}"
        assert row["± seeds"] == f"{abs(means[0] - means[1]) / 2:.1f}"
        assert row["± languages"] == f"{sum(each['std'] for each in students) / 2:.1f}"
        teacher = figures[0]["teacher"]["scores"]["mean"]
        assert row["F1 kept"] == f"{sum(100 * mean / teacher for mean in means) / 2:.1f}"
        assert row["de"] == f"{sum(each['languages']['de']['f1'] for each in students) / 2:.1f}"
        assert table["teacher"]["dev"] == f"{teacher:.1f}"
        assert "test" not in row, "nothing of it was read"
    assert table["embed 8"]["paper"] == "88.6"
    assert table["embed 4"]["paper"] == "—"
    means = {name: sum(each.dev_f1 for each in results) / 2 for name, results in found.items()}
    difference = means["embed 8"] - means["embed 4"]
    assert f"- embed 8 over embed 4: {difference:+.1f} points (" in text


def test_pieces_are_those_of_all_stages(tmp_path):
    records = [{"stage": 0, "pieces": 5}, {"stage": 0, "pieces": 9}, {"stage": 1, "pieces": 4}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    assert student_pieces(tmp_path) == 13


def test_the_command_finds_what_is_there(conducted, tmp_path, capsys):
    _, found, _, out = conducted
    file = tmp_path / "table.py"
    file.write_text(
        "from xdistil_jax.study import Study, Variant\nfrom tests.test_study import variants\n"
        f"small = Study('A study', variants({str(out)!r}), seeds=(0, 1))\n"
    )
    cli.main(["table", str(file), "--only", "embed 4", "--seeds", "0"])
    table = cells(capsys.readouterr().out)
    assert list(table) == ["teacher", "embed 4"]
    mean = found["embed 4"][0].dev_f1
    assert table["embed 4"]["dev"] == f"{mean:.1f}"


def test_what_is_not_there_is_named(tmp_path):
    study = Study("A study", variants(tmp_path), orders=(("embed 8", "embed 4"),))
    assert study.only(("embed 8",)).orders == ()
    with pytest.raises(ValueError, match="no row 'embed 9'; it has embed 8, embed 4"):
        study.only(("embed 9",))
    with pytest.raises(ValueError, match="orders name embed 9"):
        Study("A study", variants(tmp_path), orders=(("embed 9", "embed 4"),))
    with pytest.raises(ValueError, match="variants of different names"):
        Study("A study", variants(tmp_path)[:1] * 2)
    first, second = variants(tmp_path)
    apart = (dataclasses.replace(first, seeds=(0,)), dataclasses.replace(second, seeds=(1,)))
    with pytest.raises(ValueError, match=r"'embed 8' and 'embed 4' are .* no seed in common"):
        Study("A study", apart, seeds=(0, 1), orders=(("embed 8", "embed 4"),))
    file = tmp_path / "other.py"
    file.write_text("experiment = 3\n")
    with pytest.raises(SystemExit, match=r"no study `full`: expected full = .* found none"):
        cli.main(["table", str(file), "--size", "full"])
