"""The corpus of a run: what is read, in which languages, and which text is for whom.

Training reads train, dev and unlabelled text through ``load_corpus`` and has no handle on the test
set: only ``load_test`` opens that.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xdistil_jax.data.budget import allot, first_of
from xdistil_jax.data.leaks import text_key
from xdistil_jax.data.readers import ReadLog, Sentence, read
from xdistil_jax.data.sources import HUB, CorpusError, language_of, missing
from xdistil_jax.data.spec import DataSpec
from xdistil_jax.data.splits import check_distinct, split_sources, unlabelled_sources
from xdistil_jax.data.spool import draw, spool
from xdistil_jax.data.texts import are_pairs, classes_of, read_texts
from xdistil_jax.labels import ClassSet, Labels, TagSet

__all__ = [
    *("Corpus", "CorpusError", "DataSpec", "ReadLog", "Sentence"),
    *("load_corpus", "load_test", "read"),
]


@dataclass(frozen=True)
class Corpus:
    """What training may see. What is read from files lies on disk, but for dev."""

    train: Sequence[Sentence]
    dev: tuple[Sentence, ...]
    """What figures are reported of."""
    transfer: Sequence[Sentence]
    """Train text first, then unlabelled text; without tags, and without sentences of dev."""
    tagset: Labels
    log: ReadLog
    stopping: tuple[Sentence, ...]
    """What decides when training stops, and which parameters are best: dev, or labels of train."""

    @property
    def languages(self) -> tuple[str, ...]:
        """All languages of the corpus, in alphabetical order."""
        parts = (self.train, self.dev, self.transfer)
        return tuple(sorted({sentence.language for part in parts for sentence in part}))


def load_corpus(spec: DataSpec, folder: Path | None = None) -> Corpus:
    """Read train, dev and unlabelled text; the test files are not opened.

    While it is used, text lies in files without a name in ``folder`` (None: where the system has
    its temporary files).

    Raises:
        CorpusError: naming file and line, what was expected and what to do.
    """
    log = ReadLog()
    tagset = _given(spec)
    train: Sequence[Sentence]
    if spec.synthetic:
        made = _synthesise(spec)
        train, dev, unlabelled = made.train, made.dev, iter(made.transfer)
        tagset = tagset or _tagset(spec, train)
    else:
        check_distinct(spec)
        train = spool(_labelled(spec, "train", tagset, log), folder)
        tagset = tagset or _tagset(spec, train)
        dev = tuple(_labelled(spec, "dev", tagset, log, pairs=are_pairs(train)))
        unlabelled = _unlabelled(spec, train, log)
    if spec.train_limit is not None:
        train = spool(draw(train, spec.train_limit, spec.seed, folder), folder)
    allotted = allot(
        train, dev, labels=spec.labels_per_language, share=spec.dev_from_train,
        withheld=spec.zero_shot, seed=spec.seed, folder=folder,
    )  # fmt: skip
    log.notes += allotted.notes
    held_out = {text_key(sentence) for sentence in (*dev, *allotted.stopping)}

    def apart(sentences: Iterable[Sentence]) -> Iterator[Sentence]:
        for sentence in sentences:
            if text_key(sentence) in held_out:
                log.dropped += 1
            else:
                yield Sentence(sentence.words, None, sentence.language)

    rest = apart(unlabelled)
    if spec.unlabelled_limit is not None:
        rest = draw(rest, spec.unlabelled_limit, spec.seed, folder)
    own = (allotted.train, allotted.text) if spec.train_as_transfer else ()
    transfer = first_of((*map(apart, own), rest), spec.transfer_limit, spec.seed, folder)
    return Corpus(allotted.train, dev, spool(transfer, folder), tagset, log, allotted.stopping)


def check_test(spec: DataSpec) -> None:
    """Is there a test set? Looks for its files, and opens none.

    Raises:
        CorpusError: saying what is missing.
    """
    if not spec.synthetic:
        for path, _ in split_sources(spec, "test"):
            if not path.startswith(HUB) and not os.path.exists(path):
                raise missing(Path(path))


def load_test(
    spec: DataSpec, *, tagset: Labels | None = None, log: ReadLog | None = None
) -> tuple[Sentence, ...]:
    """Read the test set, and nothing else. A tag that ``tagset`` doesn't have is an error."""
    if spec.synthetic:
        return _synthesise(spec).test
    check_distinct(spec)
    return tuple(_labelled(spec, "test", tagset or _given(spec), log or ReadLog()))


def load_text(spec: DataSpec, folder: Path | None = None) -> tuple[Sequence[Sentence], ReadLog]:
    """The words of all that may be trained on: transfer text as ``load_corpus`` gives it.

    Without labelled text in ``spec``, the unlabelled files alone, all languages that are in their
    root. Sentences of dev, where there is one, are left out.

    Raises:
        CorpusError: naming file and line, what was expected and what to do.
    """
    if spec.synthetic or spec.train or spec.root:
        corpus = load_corpus(spec, folder)
        return corpus.transfer, corpus.log
    if not (spec.unlabelled or spec.unlabelled_root):
        raise CorpusError(
            "no text: name files (data.unlabelled), a folder with LANGUAGE.txt "
            "(data.unlabelled_root), or labelled files, whose words are read"
        )
    log, root = ReadLog(), Path(spec.unlabelled_root)
    held_out = {text_key(each) for each in _labelled(spec, "dev", None, log)} if spec.dev else set()
    named = sorted(root.iterdir()) if spec.unlabelled_root and root.is_dir() else []
    codes = [
        path.name.partition(".")[0] for path in named if path.name.endswith((".txt", ".txt.gz"))
    ]
    known = [Sentence((), None, code) for code in codes if code == language_of(root / code)]
    text = _unlabelled(spec, known, log)
    if spec.unlabelled_limit is not None:
        text = draw(text, spec.unlabelled_limit, spec.seed, folder)
    apart = (
        Sentence(each.words, None, each.language)
        for each in text
        if not held_out or text_key(each) not in held_out
    )
    return spool(apart, folder), log


def load_held_out(spec: DataSpec) -> Iterator[Sentence]:
    """The sentences of dev and test, where ``spec`` has them: what other text is kept apart from.

    For whoever makes text, and never for training.
    """
    for split in ("dev", "test"):
        if getattr(spec, split) or spec.root:
            yield from _labelled(spec, split, None, ReadLog())


def _synthesise(spec: DataSpec) -> Any:
    from xdistil_jax.data import synthetic

    chosen = {"languages": spec.languages} if spec.languages else {}
    made = synthetic.synthesise(spec.seed, **chosen)
    if spec.task == "tagging":
        return made
    parts = ("train", "dev", "test")
    return made._replace(**{part: tuple(map(_spoken, getattr(made, part))) for part in parts})


def _spoken(sentence: Sentence) -> Sentence:
    """A sentence, its language being its class."""
    return sentence._replace(tags=(sentence.language,))


def _given(spec: DataSpec) -> Labels | None:
    kind = ClassSet if spec.task == "classification" else TagSet
    return kind(tuple(spec.types)) if spec.types else None


def _tagset(spec: DataSpec, train: Iterable[Sentence]) -> Labels:
    if spec.task == "classification":
        return classes_of(train)
    found: set[str] = set()
    for sentence in train:
        found.update(sentence.tags or ())
    return TagSet.of(found)


def _labelled(
    spec: DataSpec, split: str, tagset: Labels | None, log: ReadLog, *, pairs: bool | None = None
) -> Iterator[Sentence]:
    found: set[str] = set()
    reading = partial(read_texts, pairs=pairs) if spec.task == "classification" else read
    for source, language in split_sources(spec, split):
        sentences = reading(
            source,
            format=spec.format,
            language=language,
            on_mismatch=spec.on_mismatch,
            tag_map=dict(spec.tag_map),
            tagset=tagset,
            log=log,
            split=split,
        )
        for sentence in sentences:
            if sentence.tags is None:
                raise CorpusError(
                    f"{source}: a {split} set needs tags, and this was read as text without any; "
                    "expected token<TAB>tag lines, or name the format (data.format)"
                )
            found.add(sentence.language)
            if not spec.languages or sentence.language in spec.languages:
                yield sentence
    if spec.languages and not found.intersection(spec.languages):
        raise CorpusError(
            f"data.languages is {', '.join(spec.languages)}, but the {split} set is in "
            f"{', '.join(sorted(found))}; name one of these, or leave data.languages out"
        )


def _unlabelled(spec: DataSpec, train: Sequence[Sentence], log: ReadLog) -> Iterator[Sentence]:
    known = sorted({sentence.language for sentence in train} | set(spec.zero_shot))
    sole = known[0] if len(known) == 1 else None
    reading = read
    if spec.task == "classification":
        paired = are_pairs(train)
        reading = partial(read_texts, labelled=False, pairs=paired)
    for path, language in unlabelled_sources(spec, known, log):
        sentences = reading(
            path,
            language=language or language_of(path) or sole,
            on_mismatch=spec.on_mismatch,
            tag_map=dict(spec.tag_map),
            log=log,
        )
        kept = 0
        for sentence in sentences:
            if not spec.languages or sentence.language in spec.languages:
                kept += 1
                yield sentence
        if not kept:
            log.notes.append(f"{path}: no sentence in {', '.join(spec.languages)}; left out")
