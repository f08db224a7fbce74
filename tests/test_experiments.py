"""Every shipped experiment builds, prints its plan, and is listed in experiments/README.md."""

import pathlib

import pytest

from xdistil_jax import Experiment, cli
from xdistil_jax.distill.stages import describe
from xdistil_jax.distill.strategies import strategies
from xdistil_jax.experiment import restore, settings

FOLDER = pathlib.Path(__file__).parents[1] / "experiments"
FILES = sorted(FOLDER.glob("*.py"))
# The others are scripts: they are run by tests of their own, or need what no test has.
EXPERIMENTS = [file for file in FILES if "\nexperiment = Experiment(" in file.read_text()]
NAMES = tuple(strategies(("head", "body")))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_it_builds_and_prints_its_plan(file):
    load = cli.load_experiment(str(file))
    assert isinstance(load(None), Experiment)
    for name in NAMES:
        experiment = load(name)
        printed = describe(experiment.plan())
        assert all(stage.name in printed for stage in experiment.plan())
        assert settings(restore(settings(experiment))) == settings(experiment)


def test_the_table_lists_every_file():
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(EXPERIMENTS) >= 2
    for file in FILES:
        assert f"| `{file.name}` |" in table
