"""The student: what it may read, what its teacher says of that, and its training by the plan."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from xdistil_jax import files, hosts, storage, trees
from xdistil_jax.alignment import find_target
from xdistil_jax.classification import separated, takes_pairs
from xdistil_jax.data.corpus import Corpus, Sentence
from xdistil_jax.data.cutting import cut_tokenizer
from xdistil_jax.data.encode import EncodedStore, blocks, piece_counts
from xdistil_jax.data.spool import join
from xdistil_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from xdistil_jax.deploy.bundle import Bundle, load_bundle, save_bundle
from xdistil_jax.deploy.calibration import fit_temperature
from xdistil_jax.deploy.words import in_numpy
from xdistil_jax.distill.stages import Stage, describe
from xdistil_jax.distill.strategies import proper_name
from xdistil_jax.evaluation import can_tag, check_teacher
from xdistil_jax.experiment import Experiment, hash8, settings
from xdistil_jax.labels import ClassSet, Labels
from xdistil_jax.models.functional import build
from xdistil_jax.models.transformer import TransformerSpec
from xdistil_jax.session import Ensemble, Given, Session, Trained
from xdistil_jax.start import identify_vectors, start_table
from xdistil_jax.students import (
    StudentSpec,
    deployed,
    own_tokenizer,
    read_spec,
    start_identity,
    start_student,
    student_spec,
)
from xdistil_jax.teacher.anchor import AnchoredTeacher, anchor
from xdistil_jax.teacher.attention import AttentiveTeacher
from xdistil_jax.teacher.build import build_cache
from xdistil_jax.teacher.ensemble import combine
from xdistil_jax.teacher.manifest import CacheSettings
from xdistil_jax.teacher.outputs import anchor_outputs
from xdistil_jax.teacher.source import OnlineTeacher, Teacher
from xdistil_jax.training import Peers, train_plan
from xdistil_jax.types import Params

Teaching = Trained | Given | Ensemble


class Text(NamedTuple):
    """Train and transfer text as the student cuts it.

    ``labelled`` and ``transfer`` are rows of ``ours``. ``kept[student's id]`` is the teacher's id,
    or None where the student's tokenizer is another one.
    """

    sentences: Sequence[Sentence]
    ours: EncodedStore
    labelled: Int[np.ndarray, "N"]
    transfer: Int[np.ndarray, "M"]
    tokenizer: Tokenizer
    kept: Int[np.ndarray, "V"] | None


def encode_text(session: Session, corpus: Corpus, teacher: Teaching) -> Text:
    """Encode what the student may see, and cut the vocabulary to it, before any training."""
    config, teacher = session.experiment.student, _lead(teacher)
    sentences = join(corpus.train, corpus.transfer)

    def encoded(tokenizer: Tokenizer) -> EncodedStore:
        return session.encode(sentences, tokenizer, corpus.tagset, max_length=teacher.max_length)

    given, same = _tokenizer(session, sentences, teacher)
    ours = encoded(given)
    counts = piece_counts([ours], given.vocab_size)
    used = np.flatnonzero(counts)
    frequent = used[np.argsort(-counts[used], kind="stable")]
    capped = bool(config.vocab_size) and len(used) > config.vocab_size
    tokenizer, kept = cut_tokenizer(given, frequent[: config.vocab_size] if capped else used)
    ours = encoded(tokenizer) if capped else ours.remap(kept, folder=session.encoded)
    is_train = ours.sentence < len(corpus.train)
    rows = (np.flatnonzero(is_train), np.flatnonzero(~is_train))
    return Text(sentences, ours, *rows, tokenizer, kept if same else None)


def _tokenizer(
    session: Session, sentences: Iterable[Sentence], teacher: Trained | Given
) -> tuple[Tokenizer, bool]:
    """The one that was asked for, or one trained on the text; and is it the teacher's?"""
    theirs = teacher.tokenizer if isinstance(teacher, Trained) else None
    config = session.experiment.student
    if name := own_tokenizer(config):
        own = load_tokenizer(name, config.revision or None if name == config.checkpoint else None)
        return own, theirs is not None and own.fingerprint == theirs.fingerprint
    if theirs is not None:
        return theirs, True
    return train_tokenizer(sentences, session.experiment.teacher.vocab_size), False


def cache_teacher(session: Session, text: Text, teacher: Teaching) -> Teacher:
    """Hidden states and logits of the teacher over train and transfer text, never dev or test.

    As the student's rows see them; where whole texts are classified only the states of [CLS] are
    imitated, which is what the teacher's head reads (section 6.6, and the code).
    """
    if isinstance(teacher, Given):
        return anchor_outputs(teacher.outputs, text.sentences, text.ours, folder=session.encoded)
    if isinstance(teacher, Ensemble):
        config = session.experiment.ensemble
        members = [cache_teacher(session, text, member) for member in teacher.members]
        weights = np.array([teacher.weights_of(code) for code in text.ours.languages])
        return combine(members, text.ours, weights, states=config.states, width=config.width)
    theirs = session.encode(
        text.sentences, teacher.tokenizer, teacher.tagset, max_length=teacher.max_length
    )
    wanted = CacheSettings(
        teacher=teacher.fingerprint, tokenizer=teacher.tokenizer.fingerprint,
        layers=teacher.layers, max_length=teacher.max_length, codec=teacher.codec,
        dtype=session.dtype,
    )  # fmt: skip
    with session.timed("cache"):
        cache = build_cache(
            session.caches, theirs, np.arange(theirs.rows),
            build(replace(teacher.spec, outputs=teacher.layers)), teacher.params, wanted,
            mesh=teacher.mesh or session.mesh, say=session.say,
            only=session.experiment.teacher.cache or None,
        )  # fmt: skip
    if session.experiment.student.imitate == "coordinates":
        cache = replace(cache, coordinates=True)
    cache = replace(cache, words_only=isinstance(teacher.tagset, ClassSet))
    if text.kept is not None and _same_rows(theirs, text.ours, text.kept):
        return cache
    pool = session.experiment.student.pool
    return anchor(cache, theirs, text.ours, pool=pool, folder=session.encoded)


def _same_rows(theirs: EncodedStore, ours: EncodedStore, kept: Int[np.ndarray, "V"]) -> bool:
    """Do teacher and student cut the text into the same pieces and windows?"""
    if not np.array_equal(theirs.offsets, ours.offsets):
        return False
    both = zip(blocks(theirs.tokens), blocks(ours.tokens), strict=True)
    return all(np.array_equal(one, kept[other]) for one, other in both)


class Share(NamedTuple):
    """What one of several students has to itself, its folder, and has in common with the others.

    ``text.labelled`` are its own rows.
    """

    folder: Path
    text: Text
    peers: Peers


def run_folder(session: Session, teacher: Teaching, text: Text, *devs: EncodedStore) -> Path:
    """Where a student lies that learns from ``text`` and is chosen by ``devs``."""
    experiment = session.experiment
    config, stages = experiment.student, experiment.plan()
    identity = hash8(
        config, list(stages), experiment.run, find_target(experiment, teacher),
        session.dtype, teacher.fingerprint, experiment.teacher.codec, text.ours.identity,
        *(dev.identity for dev in devs), start_identity(config), identify_vectors(config),
    )  # fmt: skip
    name = proper_name(experiment.strategy) if experiment.stages is None else "custom"
    return experiment.folder() / f"{name}-{identity}"


def distil(
    session: Session, corpus: Corpus, teacher: Teaching, *, share: Share | None = None
) -> tuple[Path, Trained]:
    """The student: found, or distilled by the experiment's plan. Gives its run folder too.

    ``share`` is given where it is one of several.

    Raises:
        evaluation.WeakTeacherError: before anything is distilled from a teacher that can't tag.
    """
    experiment, config = session.experiment, session.experiment.student
    text = share.text if share else encode_text(session, corpus, teacher)
    spec = _spec(experiment, teacher, text, corpus.tagset)
    stages = experiment.plan(spec.groups)
    dev = session.encode(
        corpus.stopping, text.tokenizer, corpus.tagset, max_length=text.ours.max_length
    )
    folder = share.folder if share else run_folder(session, teacher, text, dev)
    session.refuse_other(folder)
    session.look_up(folder, "student")
    if not hosts.primarys((folder / "student").is_dir()):
        if can_tag(teacher) and any(stage.taught for stage in stages):
            check_teacher(session, corpus, teacher)
        session.say(f"student: {len(stages)} stages in {folder}")
        peers = share.peers if share else None
        spec, params = _train_student(
            session, folder, spec, text, dev, corpus.tagset, teacher, peers
        )
        made = Bundle(
            config.kind, asdict(spec),
            {path: np.asarray(leaf) for path, leaf in trees.leaves(params)}, text.tokenizer,
            corpus.tagset, text.ours.max_length, experiment.run.decoding,
            pairs=takes_pairs(corpus.train, corpus.tagset),
        )  # fmt: skip
        hosts.once(partial(_save, folder / "student", made, corpus.stopping))
        storage.settle(folder / "student")
    bundle = load_bundle(folder / "student")
    return folder, Trained(
        read_spec(bundle), trees.unflatten(bundle.weights), text.tokenizer, corpus.tagset,
        text.ours.max_length, folder=folder,
    )  # fmt: skip


def _save(folder: Path, made: Bundle, dev: Sequence[Sentence]) -> None:
    """A bundle whose scores were calibrated on dev."""
    temperature = fit_temperature(in_numpy(made), dev)
    save_bundle(folder, **vars(replace(made, temperature=temperature)))


def _spec(experiment: Experiment, teacher: Teaching, text: Text, tagset: Labels) -> StudentSpec:
    config = experiment.student
    spec = student_spec(
        config, find_target(experiment, teacher), text.tokenizer.vocab_size, len(tagset),
        text.ours.max_length, pool=config.pooling if isinstance(tagset, ClassSet) else "none",
    )  # fmt: skip
    if isinstance(spec, TransformerSpec):
        return replace(spec, encoder=separated(spec.encoder, text.tokenizer, tagset))
    return spec


def _lead(teacher: Teaching) -> Trained | Given:
    return teacher.lead if isinstance(teacher, Ensemble) else teacher


def _write_plan(
    folder: Path, experiment: Experiment, stages: tuple[Stage, ...], params: Params
) -> None:
    """config.json, and plan.txt with the mask of each stage."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(folder / "config.json", json.dumps(settings(experiment), indent=2))
    masks = (f"{s.name}\n{trees.describe(trees.mask(params, s.trainable))}" for s in stages)
    files.write_atomic(folder / "plan.txt", "\n\n".join((describe(stages), *masks)) + "\n")


def _train_student(
    session: Session,
    folder: Path,
    spec: StudentSpec,
    text: Text,
    dev: EncodedStore,
    tagset: Labels,
    teacher: Teaching,
    peers: Peers | None,
) -> tuple[StudentSpec, Params]:
    """The trained student, as it is deployed."""
    experiment = session.experiment
    config, stages = experiment.student, experiment.plan(spec.groups)
    taught = any(stage.taught for stage in stages)
    cache = cache_teacher(session, text, teacher) if taught else None
    if cache is not None and config.imitate == "coordinates":
        spec = replace(spec, teacher_width=_width(cache))
        stages = experiment.plan(spec.groups)
    if cache is not None and (attends := getattr(spec, "attends", ())):
        cache = _attentive(session, text, teacher, cache, attends)
    spec, params = start_student(
        config, spec, text.tokenizer, tagset,
        start_table(session, teacher, text.tokenizer, text.kept),
        key=jax.random.key(experiment.run.seed), say=session.say,
    )  # fmt: skip
    hosts.once(partial(_write_plan, folder, experiment, stages, params))
    with session.timed("student"):
        params = train_plan(
            session, folder, spec, params, stages, text.ours, dev, tagset,
            labelled=text.labelled, transfer=text.transfer, teacher=cache,
            budget=experiment.run.token_budget, seed=experiment.run.seed, peers=peers,
        ).params  # fmt: skip
    return deployed(spec, params)


def _attentive(
    session: Session, text: Text, teacher: Trained, cache: Teacher, layers: tuple[str, ...]
) -> AttentiveTeacher:
    """The cache, and the attention of ``layers`` from the teacher in the step.

    Raises:
        ValueError: if student and teacher cut words differently.
    """
    if text.kept is None or isinstance(cache, AnchoredTeacher):
        raise ValueError(
            "attention is compared piece by piece, but student and teacher cut words differently: "
            "leave student.tokenizer and student.vocab_size alone, or the attention loss out"
        )
    spec = replace(teacher.spec, outputs=(), attention=layers)
    online = OnlineTeacher(spec, teacher.params, text.kept, (), session.dtype)
    return AttentiveTeacher(cache, online)


def _width(teacher: Teacher) -> int:
    """Of what ``teacher`` gives of each layer.

    Raises:
        ValueError: if the layers have different ones.
    """
    nothing = teacher.stream(np.array([-1]), 1)
    hidden = teacher.lookup(teacher.arrays, nothing, None).hidden
    widths = sorted({states.shape[-1] for states in hidden.values()})
    if len(widths) > 1:
        raise ValueError(
            f"student.imitate is coordinates, but the layers have {widths[0]} to {widths[-1]} of "
            "them: take a teacher.codec that keeps as many of each, such as pca-256"
        )
    return widths[0]
