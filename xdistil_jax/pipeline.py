"""run(experiment) -> Result: text, teacher, cache, student, report, each found if it is there."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np

from xdistil_jax import files, trees
from xdistil_jax.compilation import persistent_cache
from xdistil_jax.data.corpus import Corpus, load_corpus
from xdistil_jax.data.encode import EncodedStore, encode, piece_counts
from xdistil_jax.data.tokenizer import Tokenizer, cut_tokenizer
from xdistil_jax.deploy.bundle import load_bundle, save_bundle
from xdistil_jax.distill.loop import StopFlag, Writer
from xdistil_jax.distill.stages import describe
from xdistil_jax.evaluation import report_run, write_report
from xdistil_jax.experiment import Experiment, Result, hash8, restore, settings
from xdistil_jax.finetune import layer_name, prepare_teacher, teacher_tokenizer
from xdistil_jax.labels import TagSet
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.embeddings import svd_table
from xdistil_jax.models.functional import build
from xdistil_jax.report.metrics import Scores
from xdistil_jax.session import Say, Session, Trained
from xdistil_jax.teacher.build import build_cache
from xdistil_jax.teacher.cache import TeacherCache
from xdistil_jax.teacher.manifest import CacheSettings
from xdistil_jax.training import train_plan
from xdistil_jax.types import Params


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
    """
    with persistent_cache(Path(experiment.run.out) / "jax-cache") as compilations:
        session = Session.start(experiment, say=say, progress=progress, stop=stop, only=only)
        with session.timed("text"):
            corpus = load_corpus(experiment.data)
            tokenizer = teacher_tokenizer(experiment, corpus)
        teacher = prepare_teacher(session, corpus, tokenizer)
        folder, student = distil(session, corpus, teacher)
        models = {"teacher": teacher, "student": student}
        report = report_run(session, folder, corpus, models, evaluate_test=evaluate_test)
    report["compilations"] = asdict(compilations)
    report["seconds"] = {name: round(value, 1) for name, value in session.seconds.items()}
    write_report(folder, report)
    return Result(folder, report, *(_scores(report, split) for split in ("dev", "test")))


def run_again(
    folder: str | Path, *, evaluate_test: bool = False, say: Say = lambda _: None
) -> Result:
    """The result of a finished run folder, with the test figures added if they are asked for.

    Raises:
        ValueError: if the folder is no finished run, or its data or settings have changed since.
    """
    folder = Path(folder).resolve()
    path = folder / "config.json"
    if not path.is_file() or not (folder / "student").is_dir():
        raise ValueError(f"{folder} is no finished run: it has no config.json or no student")
    experiment = restore(json.loads(path.read_text(encoding="utf-8")))
    run_config = replace(experiment.run, out=str(folder.parents[1]))
    experiment = replace(experiment, name=folder.parent.name, run=run_config)
    return run(experiment, evaluate_test=evaluate_test, say=say, only=folder)


def _scores(report: dict, split: str) -> dict[str, Scores] | None:
    if split not in report["figures"]:
        return None
    figures = report["figures"][split]
    return {name: Scores.from_json(each["scores"]) for name, each in figures.items()}


def distil(session: Session, corpus: Corpus, teacher: Trained) -> tuple[Path, Trained]:
    """The student: found, or distilled by the experiment's plan. Returns its run folder too."""
    experiment = session.experiment
    length = teacher.max_length
    text = encode(
        [*corpus.train, *corpus.transfer], teacher.tokenizer, corpus.tagset,
        max_length=length, folder=session.encoded,
    )  # fmt: skip
    used = np.flatnonzero(piece_counts([text], teacher.tokenizer.vocab_size))
    tokenizer, kept = cut_tokenizer(teacher.tokenizer, used)
    dev = encode(corpus.dev, tokenizer, corpus.tagset, max_length=length, folder=session.encoded)
    stages = experiment.plan()
    layer = layer_name(experiment, teacher.spec)
    identity = hash8(
        experiment.student, list(stages), experiment.run, layer, session.dtype,
        teacher.fingerprint, text.identity, dev.identity,
    )  # fmt: skip
    name = experiment.strategy if experiment.stages is None else "custom"
    folder = experiment.folder() / f"{name}-{identity}"
    config = experiment.student
    spec = BiLSTMSpec(
        tokenizer.vocab_size, config.embed, config.hidden, teacher.spec.width,
        len(corpus.tagset), config.projection, config.head_on, layer, config.dropout,
    )  # fmt: skip
    session.refuse_other(folder)
    if not (folder / "student").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomic(folder / "plan.txt", describe(stages) + "\n")
        files.write_atomic(folder / "config.json", json.dumps(settings(experiment), indent=2))
        params = build(spec).init(jax.random.key(experiment.run.seed))
        if config.embedding == "svd":
            table = np.asarray(teacher.params["embed"]["table"])[kept]
            params["embed"]["table"] = svd_table(table, config.embed)
        transfer = np.flatnonzero(text.sentence >= len(corpus.train))
        cache = None
        if any(stage.labelled_fraction < 1 for stage in stages):
            cache = _cache(session, text, teacher, layer)
        with session.timed("student"):
            params = train_plan(
                session, folder, spec, params, stages, text.remap(kept), dev, corpus.tagset,
                labelled=np.flatnonzero(text.sentence < len(corpus.train)), transfer=transfer,
                teacher=cache, budget=experiment.run.token_budget,
            ).params  # fmt: skip
        _save_student(folder / "student", spec, params, tokenizer, corpus.tagset, length)
    bundle = load_bundle(folder / "student")
    params = trees.unflatten(bundle.weights)
    return folder, Trained(spec, params, tokenizer, corpus.tagset, length)


def _cache(session: Session, text: EncodedStore, teacher: Trained, layer: str) -> TeacherCache:
    """Hidden states and logits of the teacher over train and transfer text, never dev or test."""
    cache_settings = CacheSettings(
        teacher=f"{teacher.fingerprint}", tokenizer=teacher.tokenizer.fingerprint,
        layers=(layer,), max_length=teacher.max_length, dtype=session.dtype,
    )  # fmt: skip
    with session.timed("cache"):
        spec = replace(teacher.spec, outputs=(layer,))
        return build_cache(
            session.caches, text, np.arange(text.rows), build(spec), teacher.params,
            cache_settings, mesh=session.mesh, say=session.say,
            only=session.experiment.teacher.cache or None,
        )  # fmt: skip


def _save_student(
    folder: Path,
    spec: BiLSTMSpec,
    params: Params,
    tokenizer: Tokenizer,
    tagset: TagSet,
    max_length: int,
) -> None:
    weights = {path: np.asarray(leaf) for path, leaf in trees.leaves(params)}
    save_bundle(
        folder, kind="bilstm", sizes=asdict(spec), weights=weights, tokenizer=tokenizer,
        tagset=tagset, max_length=max_length,
    )  # fmt: skip
