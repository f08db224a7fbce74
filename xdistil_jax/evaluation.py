"""A run's report: figures on dev, and on test when asked for; every reading of test is counted."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from xdistil_jax import files
from xdistil_jax.data.batches import Buckets, choose_widths
from xdistil_jax.data.corpus import Corpus, Sentence, load_test
from xdistil_jax.data.encode import encode
from xdistil_jax.data.leaks import overlap, unseen
from xdistil_jax.distill.evaluate import predict, tagged_set, tags_by_sentence
from xdistil_jax.experiment import settings
from xdistil_jax.models.functional import build
from xdistil_jax.report import bench, page
from xdistil_jax.report.metrics import Scores, retention, score
from xdistil_jax.session import Session, Trained
from xdistil_jax.sharding import replicate

_LATENCY_SECONDS = 8.0


def tag(session: Session, model: Trained, sentences: Sequence[Sentence]) -> list[tuple[str, ...]]:
    """The tags that ``model`` gives to the words of each sentence."""
    bare = [sentence._replace(tags=None) for sentence in sentences]
    store = encode(bare, model.tokenizer, None, max_length=model.max_length, folder=session.encoded)
    buckets = Buckets(choose_widths(store.lengths, session.experiment.run.buckets), 4096)
    tagged = tagged_set(store, buckets, model.tagset, session.mesh, steps=4)
    flat = predict(model.spec, session.dtype, replicate(model.params, session.mesh), tagged)
    return tags_by_sentence(flat, store, model.tagset)


def evaluate(
    session: Session,
    model: Trained,
    sentences: Sequence[Sentence],
    *,
    fresh: Bool[np.ndarray, "S"] | None = None,
) -> tuple[Scores, Scores | None]:
    """seqeval's figures by language on all sentences, and on those where ``fresh`` holds.

    The second is None without such sentences.
    """
    gold = [sentence.tags or () for sentence in sentences]
    predicted = tag(session, model, sentences)
    languages = [sentence.language for sentence in sentences]
    everything = score(gold, predicted, languages)
    chosen = np.flatnonzero(False if fresh is None else fresh)
    if not len(chosen):
        return everything, None
    part = ([column[i] for i in chosen] for column in (gold, predicted, languages))
    return everything, score(*part)


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
    """report.json and report.md."""
    files.write_atomic(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False))
    files.write_atomic(folder / "report.md", page.render(report))


def report_run(
    session: Session, folder: Path, corpus: Corpus, models: Mapping[str, Trained], *,
    evaluate_test: bool,
) -> dict[str, Any]:  # fmt: skip
    """The report of a run folder, with what is missing of it added: dev always, test if asked.

    ``models`` are ``"teacher"`` and ``"student"``.
    """
    report = read_report(folder)
    readings = report.get("test_readings", 0)
    figures = dict(report.get("figures", {}))
    if "dev" not in figures:
        with session.timed("evaluation"):
            figures["dev"] = _score(session, models, corpus.dev, corpus)
    if evaluate_test and "test" not in figures:
        with session.timed("evaluation"):
            sentences = load_test(session.experiment.data)
            readings += 1
            figures["test"] = _score(session, models, sentences, corpus)
            figures["leaks"] = _leaks(corpus, sentences)
    latency = report.get("latency")
    if latency is None and session.experiment.run.latency:
        with session.timed("latency"):
            latency = _latency(models["teacher"], models["student"])
    split = "test" if "test" in figures else "dev"
    report |= page.compose(
        compose_rows(figures[split], latency),
        title=f"{session.experiment.name}, {folder.name}",
        split=split,
        test_readings=readings,
        seed=session.experiment.run.seed,
        configuration=settings(session.experiment),
        versions=page.versions(),
        latency=latency,
        notes=_notes(corpus, figures),
    )
    report["figures"] = figures
    write_report(folder, report)
    return report


def _score(
    session: Session, models: Mapping[str, Trained], sentences: Sequence[Sentence], corpus: Corpus
) -> dict[str, Any]:
    fresh = unseen(sentences, corpus.train, corpus.transfer)
    found: dict[str, Any] = {}
    for name, model in models.items():
        scores, rest = evaluate(session, model, sentences, fresh=fresh)
        found[name] = {
            "scores": scores.to_json(),
            "unseen": None if rest is None else rest.to_json(),
            "parameters": bench.parameters(model.params),
        }
    return found


def _latency(teacher: Trained, student: Trained) -> dict[str, Any]:
    return bench.models_latency(
        (build(teacher.spec).apply, teacher.params),
        (build(student.spec).apply, student.params),
        vocab_sizes=(teacher.tokenizer.vocab_size, student.tokenizer.vocab_size),
        budget_s=_LATENCY_SECONDS,
    )


def compose_rows(
    figures: Mapping[str, Any], latency: Mapping[str, Any] | None
) -> tuple[page.Row, ...]:
    """The teacher's and the student's column of a table."""
    teacher = Scores.from_json(figures["teacher"]["scores"])
    size = figures["teacher"]["parameters"]
    rows = []
    for name, each in figures.items():
        scores = Scores.from_json(each["scores"])
        rest = None if each["unseen"] is None else Scores.from_json(each["unseen"])
        student = name != "teacher"
        ratios = (None, None)
        if student and latency is not None:
            ratios = (latency["32x32"]["ratio"], latency["1x32"]["ratio"])
        kept = retention(scores, teacher) if student else None
        compression = size / each["parameters"] if student else None
        rows.append(page.Row(name, scores, rest, each["parameters"], compression, kept, *ratios))
    return tuple(rows)


def _leaks(corpus: Corpus, test: Sequence[Sentence]) -> list[dict[str, Any]]:
    splits = {"train": corpus.train, "transfer": corpus.transfer, "dev": corpus.dev, "test": test}
    return [each._asdict() for each in overlap(splits) if each.shared]


def _notes(corpus: Corpus, figures: Mapping[str, Any]) -> list[str]:
    notes = [
        f"{len(corpus.train):,} labelled and {len(corpus.transfer):,} transfer sentences in "
        f"{len({s.language for s in corpus.train})} languages. F1 kept and compression refer to "
        "this run's own teacher."
    ]
    if corpus.log.repaired:
        notes.append(f"{corpus.log.repaired:,} tags were repaired (IOB1 or a stray I-).")
    if corpus.log.skipped:
        notes.append(f"{corpus.log.skipped:,} sentences were skipped.")
    return notes
