"""The paper's setting at full size: WikiAnn in 41 languages, mBERT, E=300, H=600.

    xdistil run experiments/full.py d4.2 --test

Data from the hub (the splits of Rahimi et al. 2019: 705,000 sentences of train). Transfer text: the
same and, beyond its 0.7M sentences, that of `xdistil transfer --languages af,hi,… --per-language
160000 --out transfer --data.root hf:unimelb-nlp/wikiann`. Never run here: it takes the hub and an
accelerator. What it will take: `xdistil plan experiments/full.py --estimate` where the text is.
"""

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

CODES = """
af ar bg bn bs ca cs da de el en es et fa fi fr he hi hr hu id it lt lv mk ms nl no pl pt ro ru sk
sl sq sv ta tl tr uk vi
"""
LANGUAGES = tuple(CODES.split())

experiment = Experiment(
    name="full",
    strategy="D4.2",
    data=DataSpec(
        root="hf:unimelb-nlp/wikiann",
        languages=LANGUAGES,
        unlabelled_root="transfer",
        transfer_limit=1_400_000,
    ),
    teacher=TeacherConfig(
        checkpoint="bert-base-multilingual-cased",
        layer=6,
        codec="int8",
        token_budget=4096,
        recipe=Recipe(
            Schedule(peak=3e-5, warmup=0.1, decay="linear", weight_decay=0.01),
            StopRule(epochs=3, evaluations=2, patience=6),
        ),
    ),
    student=StudentConfig(embed=300, hidden=600),
    # 512 sentences of 32 pieces; one cosine a stage in place of the paper's warm restarts.
    tuning=Tuning(
        repr=Recipe(Schedule(peak=1e-3), StopRule(epochs=5)),
        logit=Recipe(Schedule(peak=1e-3), StopRule(epochs=10, patience=5)),
        ce=Recipe(Schedule(peak=1e-3), StopRule(epochs=10, patience=5)),
        joint=Recipe(Schedule(peak=1e-3), StopRule(epochs=10, patience=5)),
    ),
    run=RunConfig(token_budget=16_384),
)
