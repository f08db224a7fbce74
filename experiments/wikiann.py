"""Ten languages of WikiAnn: Tables 3 and 17 of the paper in small.

    xdistil run experiments/wikiann.py d0-s --test
    xdistil run experiments/wikiann.py d4.2 --test
    xdistil run experiments/wikiann.py d4.2 --teacher.checkpoint bert-base-multilingual-cased

Teacher: the lowest three blocks of MiniLM under mBERT's vocabulary, whose embeddings start from the
MiniLM pieces that spell them. Transfer: the training text and 10,000 unlabelled lines a language.
Costs and figures: experiments/README.md.
"""

from pathlib import Path

from english import minilm

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

experiment = Experiment(
    name="wikiann",
    strategy="D4.2",
    data=DataSpec(
        root=str(SHARED / "wikiann"),
        unlabelled_root=str(SHARED / "unlabelled"),
        unlabelled_limit=10_000,
    ),
    teacher=TeacherConfig(
        checkpoint=minilm(),
        tokenizer=str(SHARED / "vocab" / "bert-base-multilingual-cased-vocab.txt"),
        keep_layers=3,
        token_budget=2048,
        recipe=Recipe(
            Schedule(peak=4e-4, warmup=0.1, decay="linear", weight_decay=0.01),
            StopRule(epochs=2, evaluations=2, patience=6),
        ),
    ),
    student=StudentConfig(embed=100, hidden=200),
    tuning=Tuning(
        repr=Recipe(Schedule(peak=2e-3), StopRule(epochs=1, patience=3)),
        logit=Recipe(Schedule(peak=2e-3), StopRule(epochs=3, patience=3)),
        ce=Recipe(Schedule(peak=1e-3), StopRule(epochs=3, patience=3)),
        joint=Recipe(Schedule(peak=2e-3), StopRule(epochs=3, patience=3)),
        partial=0.125,
    ),
    run=RunConfig(token_budget=8192),
)
