"""One student for each language (D0): a loop that shares teacher, text and compiled programs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from xdistil_jax import files, hosts, storage
from xdistil_jax.data.corpus import Corpus, Sentence
from xdistil_jax.experiment import settings
from xdistil_jax.session import ByLanguage, Session
from xdistil_jax.student import Share, distil, run_folder
from xdistil_jax.targets import Teaching, encode_text
from xdistil_jax.training import Peers


def distil_each(session: Session, corpus: Corpus, teacher: Teaching) -> tuple[Path, ByLanguage]:
    """A student for each language with labels: found, or trained on these. Gives the run folder.

    In it each language has a folder of its own. All have the vocabulary of all text, so equal
    sizes; batches get the form that fits every language: what the first student has compiled does
    for the others. Text is streamed unless told otherwise: on the devices it would have a form for
    each language.

    Raises:
        ValueError: see ``labelled_languages``.
    """
    languages = labelled_languages(corpus)
    experiment = session.experiment
    if experiment.run.placement == "auto":
        streamed = replace(experiment, run=replace(experiment.run, placement="streamed"))
        session = replace(session, experiment=streamed)
    text = encode_text(session, corpus, teacher)
    own = [_of(corpus.stopping, language) for language in languages]
    length = text.ours.max_length
    devs = [session.encode(each, text.tokenizer, corpus.tagset, max_length=length) for each in own]
    spoken = text.ours.language[text.labelled]
    rows = [text.labelled[spoken == text.ours.languages.index(code)] for code in languages]
    folder = run_folder(session, teacher, text, *devs)
    session.refuse_other(folder)
    with hosts.primary_first():
        if hosts.is_primary():
            storage.refresh(folder)
    hosts.once(partial(_write_settings, session, folder))
    members = {}
    for number, language in enumerate(languages):
        part = text._replace(labelled=rows[number])
        share = Share(folder / language, part, Peers(tuple(rows), tuple(devs)))
        alone = replace(corpus, stopping=own[number])
        _, members[language] = distil(replace(session, only=None), alone, teacher, share=share)
    return folder, ByLanguage(members, folder)


def _write_settings(session: Session, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(settings(session.experiment), indent=2)
    files.write_atomic(folder / "config.json", content)


def _of(sentences: Sequence[Sentence], language: str) -> tuple[Sentence, ...]:
    return tuple(each for each in sentences if each.language == language)


def labelled_languages(corpus: Corpus) -> tuple[str, ...]:
    """Those of the train set, in alphabetical order.

    Raises:
        ValueError: for a language that has no labels to learn from, to decide when to stop, or to
            be scored by.
    """
    parts = {"train": corpus.train, "what decides when to stop": corpus.stopping, "dev": corpus.dev}
    found = {name: {each.language for each in part} for name, part in parts.items()}
    known = found["train"]
    for name, there in found.items():
        if there != known:
            raise ValueError(
                "a student for each language needs labels of each, in train and dev: "
                f"{', '.join(sorted(there ^ known))} is not in both train and {name}. Name the "
                "languages (data.languages), or take D0-S, one student for all"
            )
    return tuple(sorted(known))


def describe(students: ByLanguage) -> str:
    """A sentence for reports."""
    members = students.members
    one = next(iter(members.values()))
    return (
        f"Students: {len(members)}, one for each language ({', '.join(members)}); all have the "
        f"same {one.tokenizer.vocab_size:,} pieces. Parameters are those of all of them together."
    )
