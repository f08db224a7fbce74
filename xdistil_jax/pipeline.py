"""run(experiment) -> Result: text, teacher, cache, student, report, each found if it is there."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from xdistil_jax import files, trees
from xdistil_jax.compilation import persistent_cache
from xdistil_jax.data.corpus import Corpus, check_test, load_corpus
from xdistil_jax.data.encode import EncodedStore, encode, piece_counts
from xdistil_jax.data.tokenizer import Tokenizer, cut_tokenizer
from xdistil_jax.deploy.bundle import load_bundle, save_bundle
from xdistil_jax.distill.loop import StopFlag, Writer
from xdistil_jax.distill.stages import describe
from xdistil_jax.distill.strategies import proper_name
from xdistil_jax.evaluation import report_run, write_report
from xdistil_jax.experiment import Experiment, Result, hash8, restore, settings
from xdistil_jax.finetune import layer_name, prepare_teacher
from xdistil_jax.labels import TagSet
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.embeddings import join_embedding, start_embedding
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
            if evaluate_test:
                check_test(experiment.data)
        teacher = prepare_teacher(session, corpus)
        folder, student = distil(session, corpus, teacher)
        models = {"teacher": teacher, "student": student}
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


def _scores(report: dict, split: str) -> dict[str, Scores]:
    models = report["figures"][split]["models"]
    return {name: Scores.from_json(each["scores"]) for name, each in models.items()}


class Text(NamedTuple):
    """Train and transfer text in the teacher's pieces, and the tokenizer cut to them.

    ``labelled`` and ``transfer`` are rows of ``store``; ``kept[student's id]`` is the teacher's id.
    """

    store: EncodedStore
    labelled: Int[np.ndarray, "N"]
    transfer: Int[np.ndarray, "M"]
    tokenizer: Tokenizer
    kept: Int[np.ndarray, "V"]


def encode_text(session: Session, corpus: Corpus, teacher: Trained) -> Text:
    """Encode what the student may see, and cut the vocabulary to it, before any training."""
    store = encode(
        [*corpus.train, *corpus.transfer], teacher.tokenizer, corpus.tagset,
        max_length=teacher.max_length, folder=session.encoded,
    )  # fmt: skip
    used = np.flatnonzero(piece_counts([store], teacher.tokenizer.vocab_size))
    is_train = store.sentence < len(corpus.train)
    rows = (np.flatnonzero(is_train), np.flatnonzero(~is_train))
    return Text(store, *rows, *cut_tokenizer(teacher.tokenizer, used))


def cache_teacher(session: Session, text: Text, teacher: Trained) -> TeacherCache:
    """Hidden states and logits of the teacher over train and transfer text, never dev or test."""
    layer = layer_name(session.experiment, teacher.spec)
    wanted = CacheSettings(
        teacher=teacher.fingerprint, tokenizer=teacher.tokenizer.fingerprint, layers=(layer,),
        max_length=teacher.max_length, dtype=session.dtype,
    )  # fmt: skip
    with session.timed("cache"):
        return build_cache(
            session.caches, text.store, np.arange(text.store.rows),
            build(replace(teacher.spec, outputs=(layer,))), teacher.params, wanted,
            mesh=session.mesh, say=session.say, only=session.experiment.teacher.cache or None,
        )  # fmt: skip


def distil(session: Session, corpus: Corpus, teacher: Trained) -> tuple[Path, Trained]:
    """The student: found, or distilled by the experiment's plan. Gives its run folder too."""
    experiment, config = session.experiment, session.experiment.student
    text = encode_text(session, corpus, teacher)
    layer = layer_name(experiment, teacher.spec)
    spec = BiLSTMSpec(
        text.tokenizer.vocab_size, config.embed, config.hidden, teacher.spec.width,
        len(corpus.tagset), config.projection, config.head_on, layer, config.dropout,
    )  # fmt: skip
    dev = encode(
        corpus.dev, text.tokenizer, corpus.tagset, max_length=teacher.max_length,
        folder=session.encoded,
    )  # fmt: skip
    stages = experiment.plan()
    identity = hash8(
        config, list(stages), experiment.run, layer, session.dtype, teacher.fingerprint,
        text.store.identity, dev.identity,
    )  # fmt: skip
    name = proper_name(experiment.strategy) if experiment.stages is None else "custom"
    folder = experiment.folder() / f"{name}-{identity}"
    session.refuse_other(folder)
    if not (folder / "student").is_dir():
        session.say(f"student: {len(stages)} stages in {folder}")
        params = _train_student(session, folder, spec, text, dev, corpus.tagset, teacher)
        params = join_embedding(params)
        save_bundle(
            folder / "student", kind="bilstm", sizes=asdict(spec),
            weights={path: np.asarray(leaf) for path, leaf in trees.leaves(params)},
            tokenizer=text.tokenizer, tagset=corpus.tagset, max_length=teacher.max_length,
            decoding=experiment.run.decoding,
        )  # fmt: skip
    params = trees.unflatten(load_bundle(folder / "student").weights)
    return folder, Trained(
        spec, params, text.tokenizer, corpus.tagset, teacher.max_length, folder=folder
    )


def _train_student(
    session: Session,
    folder: Path,
    spec: BiLSTMSpec,
    text: Text,
    dev: EncodedStore,
    tagset: TagSet,
    teacher: Trained,
) -> Params:
    experiment = session.experiment
    stages = experiment.plan()
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(folder / "config.json", json.dumps(settings(experiment), indent=2))
    if experiment.student.embedding == "projected":
        spec = replace(spec, source_width=teacher.params["embed"]["table"].shape[1])
    params = build(spec).init(jax.random.key(experiment.run.seed))
    masks = (f"{s.name}\n{trees.describe(trees.mask(params, s.trainable))}" for s in stages)
    files.write_atomic(folder / "plan.txt", "\n\n".join((describe(stages), *masks)) + "\n")
    config = experiment.student
    if config.embedding != "random":
        table = np.asarray(teacher.params["embed"]["table"])[text.kept]
        params = start_embedding(
            params, table, scale=config.embedding_scale, projected=config.embedding == "projected"
        )
    taught = any(stage.labelled_fraction < 1 for stage in stages)
    cache = cache_teacher(session, text, teacher) if taught else None
    with session.timed("student"):
        return train_plan(
            session, folder, spec, params, stages, text.store.remap(text.kept), dev, tagset,
            labelled=text.labelled, transfer=text.transfer, teacher=cache,
            budget=experiment.run.token_budget, seed=experiment.run.seed,
        ).params  # fmt: skip
