"""The paper's setting at full size: WikiAnn in 41 languages, mBERT, E=300, H=600.

    xdistil run experiments/full.py d4.2 --test

Data from the hub (the splits of Rahimi et al. 2019: 705,000 sentences of train). Transfer text: the
same and, beyond its 0.7M sentences, that of `xdistil transfer --languages af,hi,… --per-language
160000 --out transfer --data.root hf:unimelb-nlp/wikiann`. Never run here: it takes the hub and an
accelerator. What it will take: `xdistil plan experiments/full.py --estimate` where the text is.
"""

from statistics import fmean

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

TABLE_17 = {
    "af": (87, 89, 91, 84), "ar": (85, 88, 89, 88), "bg": (90, 93, 93, 90), "bn": (91, 83, 95, 95),
    "bs": (91, 93, 93, 92), "ca": (91, 94, 93, 91), "cs": (91, 92, 93, 90), "da": (91, 93, 93, 90),
    "de": (84, 89, 89, 86), "el": (86, 90, 90, 89), "en": (78, 83, 84, 81), "es": (90, 92, 93, 90),
    "et": (89, 92, 91, 90), "fa": (90, 92, 93, 93), "fi": (89, 91, 92, 89), "fr": (87, 91, 91, 88),
    "he": (79, 85, 85, 85), "hi": (84, 85, 88, 85), "hr": (90, 92, 93, 89), "hu": (90, 93, 93, 90),
    "id": (92, 92, 93, 91), "it": (88, 93, 92, 89), "lt": (87, 89, 90, 86), "lv": (90, 92, 93, 91),
    "mk": (92, 93, 94, 91), "ms": (90, 92, 93, 91), "nl": (89, 93, 92, 89), "no": (91, 93, 93, 90),
    "pl": (88, 91, 92, 89), "pt": (89, 92, 93, 90), "ro": (93, 94, 94, 92), "ru": (85, 88, 90, 86),
    "sk": (92, 93, 94, 91), "sl": (92, 93, 94, 92), "sq": (91, 93, 93, 88), "sv": (94, 95, 95, 93),
    "ta": (77, 82, 84, 84), "tl": (94, 88, 95, 93), "tr": (90, 92, 93, 90), "uk": (88, 92, 93, 89),
    "vi": (89, 91, 92, 88),
}  # fmt: skip
"""F1 by language: the student, mBERT for each language, mBERT, and Rahimi et al.'s taggers for each
language (HSup of Rahimi et al. 2019, which the paper calls MMNER)."""


def context(*languages: str) -> str:
    """For a table's note: the paper's means in these languages (none: in all)."""
    chosen = [TABLE_17[code] for code in languages or TABLE_17]
    student, single, teacher, taggers = map(fmean, zip(*chosen, strict=True))
    where = ", ".join(languages) or "its 41 languages"
    return (
        f"Context, with all labels: in {where} the paper's student has {student:.1f}, mBERT "
        f"{teacher:.1f}, mBERT for each language {single:.1f}, Rahimi et al.'s tagger for each "
        f"language {taggers:.1f}."
    )
