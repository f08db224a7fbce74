"""Table 6: 100 labels a language, and transfer text of several sizes.

    xdistil table experiments/table6.py --test                 # ten languages
    xdistil table experiments/table6.py --size full --test     # the paper's; hub, accelerator

    python experiments/table6.py                               # pretrains a teacher in runs/mlm
    xdistil table experiments/table6.py --size pretrained --test

One teacher, trained on these labels alone; a fifth of them decides when to stop. As a script:
masked language modelling of the 100,000 transfer sentences, from where the teacher else begins.
"""

from dataclasses import replace

import full as paper
import wikiann

from xdistil_jax import Experiment, Recipe, Schedule, StopRule
from xdistil_jax.pretrain import Pretraining, pretrain
from xdistil_jax.study import Study, Variant, varied
from xdistil_jax.terminal import audience, signals, told

NOTE = (
    "The teacher has seen the same 100 labels a language. In the paper, in 41 languages with 100 "
    "labels, mBERT has 79.5; Rahimi et al.'s LSup, a tagger for each language, 62.1, and by "
    "transfer, RaRe t10, 77.4. "
)


PRETRAINED = "runs/mlm"
STEPS = {"teacher": 300, "logit": 500, "ce": 100}
"""At least so many: the epochs of so little text are over before anything is learnt."""


def rows(base: Experiment, sizes: dict[int, str]) -> tuple[Variant, ...]:
    """A row for each size of the transfer set."""
    stops = {name: {"stop": {"min_steps": steps}} for name, steps in STEPS.items()}
    # Cut to the transfer text, the vocabulary would give each row another teacher.
    whole = bool(base.teacher.tokenizer)
    teacher = {"min_f1": 0.0, "recipe": stops.pop("teacher"), "whole_vocabulary": whole}
    few = varied(base, data={"labels_per_language": 100}, teacher=teacher, tuning=stops)
    return tuple(
        Variant(f"{size:,} transfer", varied(few, data={"transfer_limit": size}), figure)
        for size, figure in sizes.items()
    )


small = Study(
    "Table 6, ten languages, 100 labels each",
    rows(wikiann.experiment, {1_000: "19.1", 20_000: "77.0", 100_000: "77.2"}),
    orders=(
        ("20,000 transfer", "1,000 transfer"),
        ("100,000 transfer", "20,000 transfer"),
    ),
    note=NOTE + paper.context(*wikiann.LANGUAGES),
)
full = Study(
    "Table 6, 41 languages, 100 labels each",
    rows(
        varied(paper.experiment, strategy="D4.2"),
        {4_100: "19.1", 705_000: "77.0", 1_300_000: "77.2", 7_200_000: "77.3"},
    ),
    orders=(
        ("705,000 transfer", "4,100 transfer"),
        ("7,200,000 transfer", "705,000 transfer"),
    ),
    note=NOTE + paper.context(),
)
pretrained = Study(
    "Table 6, ten languages, 100 labels each, a teacher pretrained on the transfer text",
    rows(
        varied(
            wikiann.experiment,
            teacher={"checkpoint": PRETRAINED, "tokenizer": "", "keep_layers": 0},
        ),
        {100_000: "77.2"},
    ),
    note=NOTE + paper.context(*wikiann.LANGUAGES),
)


def pretraining() -> Pretraining:
    """Of the text of ``pretrained``, from the blocks and embeddings of ``wikiann.py``'s teacher."""
    recipe = Recipe(
        Schedule(peak=5e-4, warmup=0.05, decay="linear", weight_decay=0.01),
        StopRule(epochs=2, evaluations=2, patience=6),
    )
    return Pretraining(
        PRETRAINED,
        data=pretrained.variants[0].experiment.data,
        teacher=replace(wikiann.experiment.teacher, recipe=recipe),
    )


if __name__ == "__main__":
    with told("table6.py"), signals() as stop:
        found = pretrain(pretraining(), stop=stop, **audience())
        reached = f"perplexity {found['perplexity']:.0f} after {found['best_step']:,} steps"
        print(f"{PRETRAINED}: {reached}")
