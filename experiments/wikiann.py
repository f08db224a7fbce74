"""Ten languages of WikiAnn: Tables 3 and 17 of the paper in small.

    xdistil run experiments/wikiann.py logit-ce --test
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

LANGUAGES = ("de", "en", "es", "fr", "id", "nl", "pl", "pt", "ru", "ta")
"""Those of ../shared/data/wikiann, for the notes of tables; the run takes what is there."""
SHARED = Path(__file__).parents[2] / "shared" / "data"

experiment = Experiment(
    name="wikiann",
    strategy="logit-ce",
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
    student=StudentConfig(embed=100, hidden=200, embedding="projected"),
    tuning=Tuning(
        repr=Recipe(Schedule(peak=4e-3, weight_decay=0.01), StopRule(epochs=1)),
        logit=Recipe(Schedule(peak=6e-3, weight_decay=0.01), StopRule(epochs=3, patience=9)),
        ce=Recipe(
            Schedule(peak=3e-4, weight_decay=0.01), StopRule(epochs=1, evaluations=2, patience=4)
        ),
        joint=Recipe(Schedule(peak=4e-3, weight_decay=0.01), StopRule(epochs=2)),
        partial=0.125,
        logit_loss="logit_all",
    ),
    run=RunConfig(token_budget=4096),
)
