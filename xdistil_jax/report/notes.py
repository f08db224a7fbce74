"""What the top of a report says of its data: how much was read, and what stands in two splits."""

from collections.abc import Mapping, Sequence
from typing import Any

from xdistil_jax.data.corpus import Corpus, Sentence
from xdistil_jax.data.leaks import overlap
from xdistil_jax.labels import ClassSet, Decoding

_CLASSIFIED = "Teacher and student alike say the likeliest class of each text."
_DECODED: dict[Decoding, str] = {
    "iob2": "Teacher and student tag alike: the best valid IOB2 sequence of each sentence.",
    "argmax": "Teacher and student tag alike: the best tag of each word, valid IOB2 or not.",
}


def leaks(corpus: Corpus, sentences: Sequence[Sentence]) -> list[dict[str, Any]]:
    """Which share of a split also stands in train or in transfer text, by language."""
    seen = {"train": corpus.train, "transfer": corpus.transfer}
    found = []
    for within, text in seen.items():
        for each in overlap({within: text, "split": sentences}):
            if each.anywhere:
                found.append({**each._asdict(), "share": each.share})
    return found


def notes(corpus: Corpus, figures: Mapping[str, Any], decoding: Decoding) -> list[str]:
    """What was read, how it was decoded, and which sentences stand in two splits."""
    languages = {sentence.language for sentence in corpus.train}
    log = corpus.log
    said = [
        _CLASSIFIED if isinstance(corpus.tagset, ClassSet) else _DECODED[decoding],
        f"{len(corpus.train):,} labelled and {len(corpus.transfer):,} transfer sentences in "
        f"{len(languages)} language{'s' * (len(languages) > 1)}. What is kept, and "
        "compression, refer to this run's own teacher.",
        f"Read: {log.repaired:,} tags repaired (IOB1 or a stray I-), {log.skipped:,} sentences "
        f"skipped, {log.dropped:,} transfer sentences dropped because they also stand in dev.",
        *log.notes,
    ]
    for split in ("dev", "test"):
        for within in ("train", "transfer"):
            found = figures.get(split, {}).get("leaks", ())
            shares = [
                f"{each['language']} {each['share']:.1%}"
                for each in found
                if each["within"] == within and each["shared"]
            ]
            if shares:
                said.append(
                    f"Sentences of {split} that also stand in {within}: {', '.join(shares)}."
                )
    return said
