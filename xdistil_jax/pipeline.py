"""run(experiment) -> Result: text, teacher, cache, student, report, each found if it is there."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from xdistil_jax import files, storage
from xdistil_jax.compilation import persistent_cache
from xdistil_jax.data.corpus import check_test, load_corpus
from xdistil_jax.distill.loop import StopFlag, Writer
from xdistil_jax.evaluation import can_tag, report_run, write_report
from xdistil_jax.experiment import Experiment, Result, restore
from xdistil_jax.finetune import prepare_teacher
from xdistil_jax.languages import describe, distil_each, labelled_languages
from xdistil_jax.report.classes import AnyScores, read_scores
from xdistil_jax.session import Say, Session
from xdistil_jax.student import distil


def run(
    experiment: Experiment,
    *,
    evaluate_test: bool = False,
    say: Say = lambda message: None,
    progress: Writer | None = None,
    stop: StopFlag | None = None,
    only: str | Path | None = None,
) -> Result:
    """Carry out an experiment: everything lands in its run folder, and is found again there.

    Reports dev figures; the test set is read only with ``evaluate_test``, and every reading is
    counted in ``report.json``. Prints nothing: messages go to ``say``, calls to ``progress``.
    ``only`` is the run folder that has to come out: nothing else is trained.

    Raises:
        distill.loop.InterruptedRunError: when ``stop`` was raised; the same call goes on.
        data.corpus.CorpusError, models.checkpoints.CheckpointError: for input that can't be used.
        OSError: naming the folder that can't be written to, or whose disk is full.
    """
    out = storage.local(experiment.run.out)
    files.require_writable(out, "run.out")
    with persistent_cache(out / "jax-cache") as compilations:
        session = Session.start(experiment, say=say, progress=progress, stop=stop, only=only)
        with session.timed("text"):
            corpus = load_corpus(experiment.data, session.encoded)
            if evaluate_test:
                check_test(experiment.data)
            if experiment.is_per_language:
                labelled_languages(corpus)
        teacher = prepare_teacher(session, corpus)
        models = {"teacher": teacher} if can_tag(teacher) else {}
        if experiment.is_per_language:
            folder, models["student"] = distil_each(session, corpus, teacher)
            corpus.log.notes.append(describe(models["student"]))
        else:
            folder, models["student"] = distil(session, corpus, teacher)
        report = report_run(session, folder, corpus, models, evaluate_test=evaluate_test)
    report["compilations"] = asdict(compilations)
    spent = {name: round(value, 1) for name, value in session.seconds.items()}
    report["seconds"] = {**report.get("seconds", {}), **spent}
    write_report(folder, report)
    test = _scores(report, "test") if evaluate_test else None
    return Result(folder, report, _scores(report, "dev"), test)


def run_again(
    folder: str | Path, *, evaluate_test: bool = False, say: Say = lambda _: None
) -> Result:
    """The result of a finished run folder, with the test figures added if they are asked for.

    Raises:
        StorageError: if it is in a bucket that can't be used.
        ValueError: if the folder is no finished run, or the part of one that a language has, or its
            data or settings have changed since.
    """
    folder = storage.find_run(folder, writes=True).resolve()
    path = folder / "config.json"
    students = (*folder.glob("student"), *folder.glob("*/student"))
    if not path.is_file() or not students:
        where = storage.shown(folder)
        raise ValueError(f"{where} is no finished run: it has no config.json or no student")
    experiment = restore(json.loads(path.read_text(encoding="utf-8")))
    if experiment.is_per_language and (folder / "student").is_dir():
        raise ValueError(
            f"{storage.shown(folder)} holds the student of one language, and figures are made for "
            f"those of all languages together: evaluate {storage.shown(folder.parent)}, whose "
            f"report has {folder.name} by itself"
        )
    run_config = replace(experiment.run, out=str(folder.parents[1]))
    experiment = replace(experiment, name=folder.parent.name, run=run_config)
    return run(experiment, evaluate_test=evaluate_test, say=say, only=folder)


def _scores(report: dict, split: str) -> dict[str, AnyScores]:
    models = report["figures"][split]["models"]
    return {name: read_scores(each["scores"]) for name, each in models.items()}
