"""A run's report: figures on dev, and on test when asked for; every reading of test is counted."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from xdistil_jax import files, hosts, storage
from xdistil_jax.data.corpus import Corpus, ReadLog, Sentence, load_test
from xdistil_jax.data.leaks import unseen
from xdistil_jax.experiment import settings
from xdistil_jax.latency import measure_latency
from xdistil_jax.report import bench, page
from xdistil_jax.report.classes import AnyScores, read_scores, score_classes
from xdistil_jax.report.compare import count_sentences, count_texts, counts_path, write_counts
from xdistil_jax.report.metrics import retention, score
from xdistil_jax.report.notes import leaks, notes
from xdistil_jax.report.versions import versions
from xdistil_jax.session import ByLanguage, Ensemble, Given, Session, Trained
from xdistil_jax.sharding import is_spread
from xdistil_jax.tagging import tag


def can_tag(teacher: Trained | Given | Ensemble) -> bool:
    """Is there a model to ask, and not only what it once said?"""
    members = teacher.members if isinstance(teacher, Ensemble) else (teacher,)
    return not any(isinstance(member, Given) for member in members)


def evaluate(
    session: Session,
    model: Trained | Ensemble | ByLanguage,
    sentences: Sequence[Sentence],
    *,
    fresh: Bool[np.ndarray, "S"] | None = None,
) -> tuple[AnyScores, AnyScores | None]:
    """Figures by language (tags: seqeval's) on all sentences, and on those where ``fresh`` holds.

    The second is None without such sentences.
    """
    return _judged(session, sentences, tag(session, model, sentences), fresh)


def _judged(
    session: Session,
    sentences: Sequence[Sentence],
    predicted: Sequence[Sequence[str]],
    fresh: Bool[np.ndarray, "S"] | None,
) -> tuple[AnyScores, AnyScores | None]:
    gold = [sentence.tags or () for sentence in sentences]
    languages = [sentence.language for sentence in sentences]
    scored = score_classes if session.experiment.data.task == "classification" else score
    everything = scored(gold, predicted, languages)
    chosen = np.flatnonzero(False if fresh is None else fresh)
    if not len(chosen):
        return everything, None
    part = ([column[i] for i in chosen] for column in (gold, predicted, languages))
    return everything, scored(*part)


def read_report(folder: Path) -> dict[str, Any]:
    """report.json of a run folder, or an empty dict before the first.

    Raises:
        ValueError: if the file is there, but damaged.
    """
    path = folder / "report.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it, and the figures are made again"
        ) from error


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """report.json and report.md, once for all processes."""
    if not hosts.is_primary():
        return
    files.write_atomic(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False))
    files.write_atomic(folder / "report.md", page.render(report))


def report_run(
    session: Session, folder: Path, corpus: Corpus,
    models: Mapping[str, Trained | Ensemble | ByLanguage], *, evaluate_test: bool,
) -> dict[str, Any]:  # fmt: skip
    """The report of a run folder, with what is missing of it added: dev always, test if asked.

    ``models`` are ``"teacher"``, unless only its outputs are there, and ``"student"``.
    """
    report = hosts.primarys(read_report(folder))
    figures = dict(report.get("figures", {}))
    readings = report.get("test_readings", 0)
    latency = report.get("latency")
    measured = session.experiment.run.latency and hosts.is_primary()
    # One process can't time alone what lies on the devices of several.
    whole = not any(map(is_spread, jax.tree.leaves([model.params for model in models.values()])))
    if latency is None and measured and whole and "teacher" in models:
        with session.timed("latency"):
            latency = measure_latency(models["teacher"], models["student"])

    def write() -> dict[str, Any]:
        split = "test" if "test" in figures else "dev"
        composed = page.compose(
            compose_rows(figures[split], latency),
            title=f"{session.experiment.name}, {folder.name}",
            split=split,
            test_readings=readings,
            seed=session.experiment.run.seed,
            configuration=settings(session.experiment),
            versions=versions(),
            latency=latency,
            notes=[*notes(corpus, figures, session.experiment.run.decoding), *session.notes],
        )
        written = {**report, **composed, "figures": figures}
        write_report(folder, written)
        return written

    figures["dev"] = _figures(session, models, corpus.dev, corpus, figures.get("dev"))
    report = write()
    if evaluate_test:
        log = ReadLog()
        sentences = load_test(session.experiment.data, tagset=corpus.tagset, log=log)
        if figures.get("test", {}).get("sentences") != identity_of(sentences):
            # Counted before it is scored, so that no reading can get lost.
            readings += 1
            report = write()
        figures["test"] = _figures(session, models, sentences, corpus, figures.get("test"), log)
        report = write()
    return report


class WeakTeacherError(ValueError):
    """A teacher that has nothing to teach."""


def check_teacher(session: Session, corpus: Corpus, teacher: Trained | Ensemble) -> None:
    """Measure the teacher on what decides when to stop, before anything is distilled from it.

    Says so where a label-only student of the same data, on disk already, is better.

    Raises:
        WeakTeacherError: if its mean F1 (or accuracy) over languages is under ``teacher.min_f1``.
    """
    limit = session.experiment.teacher.min_f1
    figures = _figures(session, {"teacher": teacher}, corpus.stopping, corpus, None)
    scores = read_scores(figures["models"]["teacher"]["scores"])
    mean, figure = scores.mean or 0.0, scores.figure
    if mean < limit:
        raise WeakTeacherError(
            f"the teacher's dev {figure} is {mean:.1f}, under the limit of {limit:g}: a student "
            "can't learn from it. Look at its training (metrics.jsonl in "
            f"{session.experiment.folder()}/teacher-*), its tags and its tokenizer; "
            "--teacher.min-f1 changes the limit"
        )
    folder = session.experiment.folder()
    storage.fetch_files([folder / name / "report.json" for name in storage.names(folder)])
    for path in sorted(folder.glob("D0-S-*/report.json")):
        dev = read_report(path.parent).get("figures", {}).get("dev", {})
        if dev.get("sentences") != figures["sentences"]:
            continue
        other = read_scores(dev["models"]["student"]["scores"]).mean
        if other > mean:
            session.say(
                f"warning: the teacher's dev {figure} is {mean:.1f}, and the label-only student "
                f"{path.parent.name} reaches {other:.1f}"
            )


def identity_of(sentences: Sequence[Sentence]) -> str:
    """By which reports know a split again."""
    content = json.dumps(list(sentences)).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _figures(
    session: Session,
    models: Mapping[str, Trained | Ensemble | ByLanguage],
    sentences: Sequence[Sentence],
    corpus: Corpus,
    known: Mapping[str, Any] | None,
    log: ReadLog | None = None,
) -> dict[str, Any]:
    """The scores of each model on a split; ``known`` ones stay if they are of these sentences."""
    identity = identity_of(sentences)
    if known is not None and known["sentences"] == identity:
        return dict(known)
    with session.timed("evaluation"):
        fresh = unseen(sentences, corpus.train, corpus.transfer)
        found = {
            name: _kept_scores(session, model, sentences, identity, fresh)
            for name, model in models.items()
        }
    return {
        "sentences": identity,
        "models": found,
        "repaired": log.repaired if log else 0,
        "leaks": leaks(corpus, sentences),
        "zero_shot": list(session.experiment.data.zero_shot),
    }


def _kept_scores(
    session: Session,
    model: Trained | Ensemble | ByLanguage,
    sentences: Sequence[Sentence],
    identity: str,
    fresh: Bool[np.ndarray, "S"],
) -> dict[str, Any]:
    """A model's scores, kept in its folder: runs that share a teacher score it once.

    Beside them lie the counts of each sentence, for ``report.compare``.
    """
    mark = hashlib.blake2b(np.packbits(fresh).tobytes(), digest_size=4).hexdigest()
    path = None if model.folder is None else model.folder / f"scores-{identity}-{mark}.json"
    known = path.read_text(encoding="utf-8") if path is not None and path.is_file() else "null"
    if (kept := json.loads(hosts.primarys(known))) is not None:
        return kept
    predicted = tag(session, model, sentences)
    scores, rest = _judged(session, sentences, predicted, fresh)
    found = {
        "scores": scores.to_json(),
        "unseen": None if rest is None else rest.to_json(),
        "parameters": bench.parameters(model.params),
    }
    if path is not None and hosts.is_primary():
        gold = [sentence.tags or () for sentence in sentences]
        languages = [sentence.language for sentence in sentences]
        whole = session.experiment.data.task == "classification"
        counts = count_texts(gold, predicted) if whole else count_sentences(gold, predicted)
        write_counts(counts_path(path.parent, identity), counts, languages)
        files.write_atomic(path, json.dumps(found))
    return found


def compose_rows(
    figures: Mapping[str, Any], latency: Mapping[str, Any] | None
) -> tuple[page.Row, ...]:
    """The teacher's and the student's column of a table; outputs alone have no column."""
    models = figures["models"]
    known = models.get("teacher")
    teacher = None if known is None else read_scores(known["scores"])
    rows = []
    for name, each in models.items():
        scores = read_scores(each["scores"])
        rest = None if each["unseen"] is None else read_scores(each["unseen"])
        student = name != "teacher"
        ratios = (None, None)
        if student and latency is not None:
            ratios = (latency["32x32"]["ratio"], latency["1x32"]["ratio"])
        kept = retention(scores, teacher) if student and teacher else None
        compression = known["parameters"] / each["parameters"] if student and known else None
        sizes = (each["parameters"], compression, kept, *ratios)
        rows.append(page.Row(name, scores, rest, *sizes, tuple(figures.get("zero_shot", ()))))
    return tuple(rows)
