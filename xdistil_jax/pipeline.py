"""run(experiment) -> Result: text, teacher, cache, student, report, each found if it is there."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np

from xdistil_jax import files, trees
from xdistil_jax.compilation import persistent_cache
from xdistil_jax.data.batches import Buckets, Source, choose_widths, language_rates, mix
from xdistil_jax.data.corpus import Corpus, load_corpus
from xdistil_jax.data.encode import EncodedStore, encode, piece_counts
from xdistil_jax.data.tokenizer import Tokenizer, cut_tokenizer, load_tokenizer, train_tokenizer
from xdistil_jax.deploy.bundle import load_bundle, save_bundle
from xdistil_jax.distill.checkpoint import Checkpoints
from xdistil_jax.distill.evaluate import HeldOut, tagged_set
from xdistil_jax.distill.loop import PlanResult, StopFlag, Training, Writer, run_plan
from xdistil_jax.distill.stages import Stage, Term, describe
from xdistil_jax.distill.step import Model
from xdistil_jax.evaluation import report_run, write_report
from xdistil_jax.experiment import Experiment, Result, hash8, restore, settings
from xdistil_jax.labels import TagSet
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.checkpoints import fingerprint, load_encoder, save_encoder
from xdistil_jax.models.embeddings import svd_table
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import Spec, build
from xdistil_jax.report.metrics import Scores
from xdistil_jax.report.writers import JsonLines, TensorBoard, Writers
from xdistil_jax.session import Say, Session, Trained
from xdistil_jax.teacher.build import build_cache
from xdistil_jax.teacher.cache import TeacherCache
from xdistil_jax.teacher.manifest import CacheSettings
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
        distill.loop.InterruptedRunError: when ``stop`` was raised; the same call goes on from there.
        data.corpus.CorpusError, models.checkpoints.CheckpointError: for input that can't be used.
    """
    with persistent_cache(Path(experiment.run.out) / "jax-cache") as compilations:
        session = Session.start(experiment, say=say, progress=progress, stop=stop, only=only)
        with session.timed("text"):
            corpus = load_corpus(experiment.data)
            tokenizer = _teacher_tokenizer(experiment, corpus)
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


def _teacher_tokenizer(experiment: Experiment, corpus: Corpus) -> Tokenizer:
    config = experiment.teacher
    if config.tokenizer or config.checkpoint:
        return load_tokenizer(config.tokenizer or config.checkpoint)
    return train_tokenizer([*corpus.train, *corpus.transfer], config.vocab_size)


def layer_name(experiment: Experiment, spec: EncoderSpec) -> str:
    """The teacher's layer that the student imitates.

    Raises:
        ValueError: if the teacher has no such layer.
    """
    number = experiment.teacher.layer or spec.layers
    if not 1 <= number <= spec.layers:
        raise ValueError(
            f"teacher.layer is {number}; the teacher has layers 1 to {spec.layers} (0: the last)"
        )
    return f"layer_{number}"


def prepare_teacher(session: Session, corpus: Corpus, tokenizer: Tokenizer) -> Trained:
    """The fine-tuned teacher: found, or trained by a one-stage plan of the same engine."""
    experiment, config = session.experiment, session.experiment.teacher
    length = config.max_length
    train = encode(
        corpus.train, tokenizer, corpus.tagset, max_length=length, folder=session.encoded
    )
    dev = encode(corpus.dev, tokenizer, corpus.tagset, max_length=length, folder=session.encoded)
    run_ = experiment.run
    identity = hash8(
        replace(config, layer=0), run_.seed, run_.temperature, session.dtype,
        _checkpoint_identity(config.checkpoint), train.identity, dev.identity,
    )  # fmt: skip
    folder = experiment.folder() / f"teacher-{identity}"
    key = jax.random.key(run_.seed)
    classes, tags = len(corpus.tagset), corpus.tagset.tags
    if not (folder / "model" / "config.json").is_file():
        session.refuse_other(folder)
        if config.checkpoint:
            labels = None if config.fine_tune else tags
            spec, params, _ = load_encoder(config.checkpoint, classes, labels=labels, key=key)
        else:
            spec = EncoderSpec(
                tokenizer.vocab_size, config.width, config.layers, config.heads,
                config.feed_forward, positions=max(length, 16), classes=classes,
                dropout=config.dropout,
            )  # fmt: skip
            params = build(spec).init(key)
        if config.fine_tune:
            session.say(f"teacher: fine-tuning in {folder}")
            stage = Stage(
                "teacher", (Term("ce"),), spec.groups, 1.0, config.recipe.schedule,
                config.recipe.stop,
            )  # fmt: skip
            with session.timed("teacher"):
                params = _train(
                    session, folder, spec, params, (stage,), train, dev, corpus.tagset,
                    labelled=np.arange(train.rows), budget=config.token_budget,
                ).params  # fmt: skip
        save_encoder(folder / "model", spec, jax.tree.map(np.asarray, params), tags)
        tokenizer.save(folder / "model")
    spec, params, _ = load_encoder(folder / "model", classes, labels=tags)
    return Trained(spec, params, tokenizer, corpus.tagset, length, fingerprint(params))


def _checkpoint_identity(checkpoint: str) -> str:
    """Of a local checkpoint, its weights' checksum: the same path may hold another file."""
    weights = Path(checkpoint) / "model.safetensors"
    return files.checksum(weights) if checkpoint and weights.is_file() else checkpoint


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
            params = _train(
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


def _train(
    session: Session, folder: Path, spec: Spec, params: Params, stages: tuple[Stage, ...],
    store: EncodedStore, dev: EncodedStore, tagset: TagSet, *, labelled: np.ndarray,
    budget: int, transfer: np.ndarray | None = None, teacher: TeacherCache | None = None,
) -> PlanResult:  # fmt: skip
    """Run a plan in ``folder``, with checkpoints, metrics.jsonl and TensorBoard."""
    run_, mesh, steps = session.experiment.run, session.mesh, session.experiment.run.steps_per_call
    widths = choose_widths(np.concatenate([store.lengths, dev.lengths]), run_.buckets)
    buckets = Buckets(widths, budget)
    transfer = np.zeros(0, np.int64) if transfer is None or teacher is None else transfer
    held_out, transfer = _hold_out(transfer, run_.held_out, run_.seed)
    checkpoints = Checkpoints(folder / "checkpoints", every=run_.save_every_s)
    saved = checkpoints.peek() or {"records": 0, "global_step": 0}
    lines = JsonLines(folder / "metrics.jsonl", keep=saved["records"])
    board = TensorBoard(folder / "tensorboard", purge_step=saved["global_step"])
    shown = () if session.progress is None else (session.progress,)
    writer = Writers((lines, board, *shown))
    training = Training(
        Model(spec, None if teacher is None else teacher.lookup, session.dtype, mesh),
        store, _source(store, labelled, run_.temperature),
        _source(store, transfer, run_.temperature), buckets,
        tagged_set(dev, buckets, tagset, mesh, steps=steps), teacher,
        () if teacher is None else teacher.arrays,
        HeldOut.of(store, held_out, buckets, teacher, mesh, steps=steps), run_.seed, steps,
        checkpoints, writer, session.stop,
    )  # fmt: skip
    session.stop.listening = True
    try:
        return run_plan(training, stages, params)
    finally:
        session.stop.listening = False
        writer.close()
        checkpoints.close()


def _source(store: EncodedStore, rows: np.ndarray, temperature: float) -> Source:
    return Source(rows, store.lengths[rows], language_rates(store.language[rows], temperature))


def _hold_out(rows: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(held out, the rest): ``count`` rows drawn by ``seed``, at most a tenth; each sorted."""
    order = np.argsort(mix(seed, 0x4E1D, rows), kind="stable")
    count = min(count, len(rows) // 10)
    return np.sort(rows[order[:count]]), np.sort(rows[order[count:]])
