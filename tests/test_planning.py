"""`xdistil plan --estimate` and `--max-mb`: what they print, that no device is touched."""

import json
import os
import re
import subprocess
import sys

import pytest

from xdistil_jax import cli, sizing
from xdistil_jax.chips import TABLE

SMALL = (
    *("--data.synthetic", "True", "--data.languages", "de", "--run.buckets", "2"),
    *("--teacher.width", "32", "--teacher.layers", "1", "--teacher.heads", "2"),
    *("--teacher.vocab-size", "400"),
)


@pytest.fixture
def printed(capsys):
    def run(*arguments):
        cli.main(arguments)
        return capsys.readouterr().out

    return run


@pytest.fixture
def told(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        return str(caught.value.code)

    return run


def column(text, name, place):
    """A number of the line that starts with ``name``."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return float(line.removeprefix(name).split()[place].replace(",", ""))


def test_an_estimate_has_every_part(printed):
    text = printed("plan", "d4.1", "--estimate", *SMALL)
    assert "ce/embed" not in text
    for line in ("train", "transfer", "distinct", "bf16", "int8", "pca-256", "logits only"):
        assert re.search(rf"^{line} +[\d,.]+", text, re.M), line
    for line in ("fine-tune teacher", "cache", "1 repr", "2 logit", "3 ce", "all"):
        assert re.search(rf"^{line} .*\d\.\d\d$", text, re.M), line
    assert "the cache beats the teacher inside the step from 1 student on" in text
    assert "1 × v5e at $1.2 an hour" in text
    assert "assumed utilisation: encoder 40%, student 5%" in text
    total = sum(
        column(text, name, 1) for name in ("fine-tune teacher", "1 repr", "2 logit", "3 ce")
    )
    assert column(text, "all", 0) == pytest.approx(total, abs=0.003)


TRANSFORMER = ("--student.kind", "transformer", "--student.layers", "2", "--student.heads", "2")


def test_a_transformers_stages_and_cost_are_told(printed):
    given = (*SMALL, *TRANSFORMER, "--student.width", "16", "--student.align", "top")
    text = printed("plan", "d4.2", "--estimate", *given)
    for line in ("1 repr", "2 logit/head", "3 logit/layer_2", "5 logit/embed", "9 ce/embed"):
        assert re.search(rf"^{line} .*\d\.\d\d$", text, re.M), line


def test_stages_are_those_of_the_widths_that_are_known(printed):
    def of_states(*options):
        text = printed("plan", "d4.1", *SMALL, *TRANSFORMER, *options)
        line = next(line for line in text.splitlines() if line.startswith("1 "))
        return " ".join(line.split()).partition(" 0%")[0]

    projecting = "1 repr repr projection, layer_2, layer_1, embed"
    assert of_states("--student.width", "16") == projecting
    assert of_states("--student.width", "32") == "1 repr repr layer_2, layer_1, embed"
    away = ("--teacher.checkpoint", "some/where")
    assert of_states("--student.width", "32", *away) == projecting


def test_the_pieces_that_the_student_keeps_are_told(printed):
    def kept(*options):
        text = printed("plan", "--estimate", *SMALL, *options)
        return int(re.search(r"; the student keeps ([\d,]+) pieces; ", text)[1].replace(",", ""))

    assert kept("--student.vocab-size", "99") == 99 < kept()


def test_without_teacher_there_is_no_cache(printed):
    text = printed("plan", "--estimate", "d0-s", *SMALL)
    assert "no stage reads the teacher" in text
    assert column(text, "bf16", 0) == 0


def test_the_table_of_prices_is_the_users(printed, tmp_path):
    table = json.loads(TABLE.read_text())
    table["chips"]["v5e"] |= {"usd_per_hour": 3.6e7, "student_utilisation": 0.0005}
    (tmp_path / "mine.json").write_text(json.dumps(table))
    given = ("plan", "d0-s", "--estimate", *SMALL)
    ours, own = printed(*given), printed(*given, "--prices", str(tmp_path / "mine.json"))
    assert "$3.6e+07 an hour" in own
    assert "student 0.05%" in own
    assert column(own, "1 ce", 5 - 1) > 1 > column(ours, "1 ce", 5 - 1)
    table["chips"]["v5e"]["usd_per_hour"] = None
    (tmp_path / "mine.json").write_text(json.dumps(table))
    unknown = printed(*given, "--prices", str(tmp_path / "mine.json"), "--chips", "8")
    assert "8 × v5e at unknown a chip" in unknown
    assert re.search(r"^all .*\?$", unknown, re.M)


def test_an_estimate_touches_no_device():
    """A platform that doesn't exist: whoever asked for a device would fail."""
    code = "import sys; from xdistil_jax.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", "d4.2", "--estimate", *SMALL],
        env={**os.environ, "JAX_PLATFORMS": "nowhere"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "9 ce/embed" in done.stdout


def test_mistakes_are_answered(told, tmp_path):
    assert "has no chip 'v5x': did you mean v5" in told("plan", "--estimate", "--chip", "v5x")
    assert "--chips 0: expected 1 or more" in told("plan", "--estimate", "--chips", "0", *SMALL)
    assert "no train set: name its file" in told("plan", "--estimate")
    assert "unknown student 'l6-h383': did you mean l6-h384" in told("plan", "--student", "l6-h383")
    assert "codec 'int9' is unknown" in told("plan", "--teacher.codec", "int9")
    assert "none.json" in told("plan", "--estimate", "--prices", str(tmp_path / "none.json"))


def test_options_of_the_plan_are_in_its_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--help"])
    said = capsys.readouterr().out
    for option in (
        "--estimate",
        "--student ",
        "--chip ",
        "--chips",
        "--prices",
        "--max-mb",
        "--max-ms",
    ):
        assert option in said
    assert "--student.embed" in said


def test_students_that_fit_are_listed(printed, monkeypatch):
    few = {"bilstm": ((16, 8), (100, 8)), "transformer": ((12, 1), (60, 2))}
    monkeypatch.setattr(sizing, "SIZES", few)
    text = printed("plan", "--max-mb", "6")
    assert "2 students of 88,500 pieces and width 768 (no text given: usual sizes)" in text
    small, large = (line.split() for line in text.splitlines()[-2:])
    assert (small[:2], small[-2:]) == (["16", "8"], ["fp32", "int8"])
    assert (large[:2], len(large)) == (["100", "8"], 6)
    other = printed("plan", "--student", "l6-h384", "--max-mb", "6")
    assert "2 students of 88,500 pieces (no text given: usual sizes)" in other
    head, small, large = (line.split() for line in other.splitlines()[-3:])
    assert (head[:2], small[:2], large[:2]) == (["width", "layers"], ["12", "1"], ["60", "2"])
    assert (small[-2:], large[-1]) == (["fp32", "int8"], "int8")
    slow = printed("plan", "--max-ms", "1e-9").splitlines()[-2:]
    assert [len(line.split()) for line in slow] == [6, 6]
