"""What the README shows is true: its Python runs, its commands and files exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


@pytest.mark.slow
def test_the_thirty_lines_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "logit" in printed
    assert (tmp_path / "runs" / "readme").is_dir()


def test_the_plan_of_your_own_is_a_plan():
    names: dict = {}
    exec(compile(BLOCKS[-1], "README.md", "exec"), names)
    stages = [stage.name for stage in names["stages"]]
    assert stages == ["both", "ce/head", "ce/projection", "ce/bilstm", "ce/embed"]


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_commands_and_make_targets_exist():
    from xdistil_jax import cli

    makefile = (ROOT / "Makefile").read_text()
    for line in re.findall(r"^(?:make|xdistil) .*$", TEXT, flags=re.M):
        words = line.split()
        known = makefile if words[0] == "make" else cli.USAGE
        assert re.search(rf"^ *{words[1]}\b", known, flags=re.M), line
