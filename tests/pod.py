"""As an experiment file: a whole run, small enough to be compiled by several processes.

xdistil launch --processes 2 --devices 2 run tests/pod.py --data.root DIR --run.out DIR
"""

from dataclasses import replace
from pathlib import Path

from tests.test_pipeline import shrunk
from xdistil_jax import DataSpec
from xdistil_jax.distill.stages import Schedule, StopRule
from xdistil_jax.distill.strategies import Recipe

_small = shrunk(Path("runs"), "D4.2")


def _recipe(epochs: float) -> Recipe:
    return Recipe(Schedule(peak=2e-2), StopRule(epochs=epochs, evaluations=1 / epochs))


experiment = replace(
    _small,
    data=DataSpec(),
    teacher=replace(_small.teacher, recipe=_recipe(25), token_budget=1024),
    tuning=replace(_small.tuning, repr=_recipe(4), logit=_recipe(4), ce=_recipe(8)),
    run=replace(_small.run, buckets=1, held_out=8, token_budget=1024, steps_per_call=4),
)
