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
from xdistil_jax.data.corpus import Corpus, Sentence
from xdistil_jax.data.encode import EncodedStore, blocks, piece_counts
from xdistil_jax.data.spool import join
from xdistil_jax.data.tokenizer import Tokenizer, cut_tokenizer, load_tokenizer, train_tokenizer
from xdistil_jax.deploy.bundle import load_bundle, save_bundle
from xdistil_jax.distill.stages import Stage, describe
from xdistil_jax.distill.strategies import proper_name
from xdistil_jax.evaluation import can_tag, check_teacher
from xdistil_jax.experiment import Experiment, hash8, settings
from xdistil_jax.labels import TagSet
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.embeddings import join_embedding, start_embedding
from xdistil_jax.models.functional import build
from xdistil_jax.session import Ensemble, Given, Session, Trained
from xdistil_jax.start import identify_vectors, start_table
from xdistil_jax.teacher.anchor import anchor
from xdistil_jax.teacher.build import build_cache
from xdistil_jax.teacher.ensemble import LAYER, combine
from xdistil_jax.teacher.manifest import CacheSettings
from xdistil_jax.teacher.outputs import anchor_outputs
from xdistil_jax.teacher.source import Teacher
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

    same = isinstance(teacher, Trained) and not config.tokenizer
    given = teacher.tokenizer if same else _own_tokenizer(session, sentences)
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


def _own_tokenizer(session: Session, sentences: Iterable[Sentence]) -> Tokenizer:
    """The one that was asked for, or one trained on the text."""
    if name := session.experiment.student.tokenizer:
        return load_tokenizer(name)
    return train_tokenizer(sentences, session.experiment.teacher.vocab_size)


def cache_teacher(session: Session, text: Text, teacher: Teaching) -> Teacher:
    """Hidden states and logits of the teacher over train and transfer text, never dev or test.

    As the student's rows see them.
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
        layers=(teacher.layer,), max_length=teacher.max_length, codec=teacher.codec,
        dtype=session.dtype,
    )  # fmt: skip
    with session.timed("cache"):
        cache = build_cache(
            session.caches, theirs, np.arange(theirs.rows),
            build(replace(teacher.spec, outputs=(teacher.layer,))), teacher.params, wanted,
            mesh=teacher.mesh or session.mesh, say=session.say,
            only=session.experiment.teacher.cache or None,
        )  # fmt: skip
    if session.experiment.student.imitate == "coordinates":
        cache = replace(cache, coordinates=True)
    if text.kept is not None and _same_rows(theirs, text.ours, text.kept):
        return cache
    pool = session.experiment.student.pool
    return anchor(cache, theirs, text.ours, pool=pool, folder=session.encoded)


def is_taught(stages: tuple[Stage, ...]) -> bool:
    """Does any stage learn from the teacher, and not from labels alone?"""
    return any(stage.labelled_fraction < 1 for stage in stages)


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
    experiment, stages = session.experiment, session.experiment.plan()
    identity = hash8(
        experiment.student, list(stages), experiment.run, _imitated(session, teacher, stages)[1],
        session.dtype, teacher.fingerprint, experiment.teacher.codec, text.ours.identity,
        *(dev.identity for dev in devs), identify_vectors(experiment.student),
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
    stages = experiment.plan()
    width, layer = _imitated(session, teacher, stages)
    spec = BiLSTMSpec(
        text.tokenizer.vocab_size, config.embed, config.hidden, width,
        len(corpus.tagset), config.projection, config.head_on, layer, config.dropout,
    )  # fmt: skip
    dev = session.encode(
        corpus.stopping, text.tokenizer, corpus.tagset, max_length=text.ours.max_length
    )
    folder = share.folder if share else run_folder(session, teacher, text, dev)
    session.refuse_other(folder)
    session.look_up(folder, "student")
    if not hosts.primarys((folder / "student").is_dir()):
        if can_tag(teacher) and is_taught(stages):
            check_teacher(session, corpus, teacher)
        session.say(f"student: {len(stages)} stages in {folder}")
        peers = share.peers if share else None
        spec, params = _train_student(
            session, folder, spec, text, dev, corpus.tagset, teacher, peers
        )
        save = partial(
            save_bundle, folder / "student", kind="bilstm", sizes=asdict(spec),
            weights={path: np.asarray(leaf) for path, leaf in trees.leaves(params)},
            tokenizer=text.tokenizer, tagset=corpus.tagset, max_length=text.ours.max_length,
            decoding=experiment.run.decoding,
        )  # fmt: skip
        hosts.once(save)
        storage.settle(folder / "student")
    bundle = load_bundle(folder / "student")
    return folder, Trained(
        BiLSTMSpec(**bundle.sizes), trees.unflatten(bundle.weights), text.tokenizer,
        corpus.tagset, text.ours.max_length, folder=folder,
    )  # fmt: skip


def _lead(teacher: Teaching) -> Trained | Given:
    return teacher.lead if isinstance(teacher, Ensemble) else teacher


def _imitated(session: Session, teacher: Teaching, stages: tuple[Stage, ...]) -> tuple[int, str]:
    """Width and name of the layer whose states the student is to reproduce.

    Raises:
        ValueError: if the plan asks for states of outputs that have none.
    """
    if isinstance(teacher, Ensemble):
        config = session.experiment.ensemble
        if config.states == "first":
            return _imitated(session, teacher.lead, stages)
        widths = [_imitated(session, member, stages)[0] for member in teacher.members]
        return config.width or sum(widths), LAYER
    if isinstance(teacher, Trained):
        return teacher.spec.width, teacher.layer
    outputs = teacher.outputs
    asks = [stage.name for stage in stages if any(t.loss.startswith("repr") for t in stage.terms)]
    if asks and not outputs.width:
        raise ValueError(
            f"stage {asks[0]!r} needs hidden states, and teacher.outputs holds logits only: take "
            "logit-ce or D1, or write the states, too"
        )
    return outputs.width or session.experiment.teacher.width, outputs.layer


def _write_plan(folder: Path, experiment: Experiment, params: Params) -> None:
    """config.json, and plan.txt with the mask of each stage."""
    stages = experiment.plan()
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(folder / "config.json", json.dumps(settings(experiment), indent=2))
    masks = (f"{s.name}\n{trees.describe(trees.mask(params, s.trainable))}" for s in stages)
    files.write_atomic(folder / "plan.txt", "\n\n".join((describe(stages), *masks)) + "\n")


def _train_student(
    session: Session,
    folder: Path,
    spec: BiLSTMSpec,
    text: Text,
    dev: EncodedStore,
    tagset: TagSet,
    teacher: Teaching,
    peers: Peers | None,
) -> tuple[BiLSTMSpec, Params]:
    """The trained parameters, and the sizes that they were trained with."""
    experiment = session.experiment
    stages = experiment.plan()
    config, table = experiment.student, start_table(session, teacher, text.tokenizer, text.kept)
    cache = cache_teacher(session, text, teacher) if is_taught(stages) else None
    if cache is not None and config.imitate == "coordinates":
        spec = replace(spec, teacher_width=_width(cache, spec.imitates))
    if config.embedding == "full":
        spec = replace(spec, embed=table.shape[1])
    deployed = spec
    if table is not None and config.embedding == "projected":
        spec = replace(spec, source_width=table.shape[1])
    params = build(spec).init(jax.random.key(experiment.run.seed))
    hosts.once(partial(_write_plan, folder, experiment, params))
    if table is not None:
        params = start_embedding(
            params, table, scale=config.embedding_scale, how=config.embedding,
            removed=config.removed_directions,
        )  # fmt: skip
    with session.timed("student"):
        params = train_plan(
            session, folder, spec, params, stages, text.ours, dev, tagset,
            labelled=text.labelled, transfer=text.transfer, teacher=cache,
            budget=experiment.run.token_budget, seed=experiment.run.seed, peers=peers,
        ).params  # fmt: skip
    return deployed, join_embedding(jax.tree.map(np.asarray, params))


def _width(teacher: Teacher, layer: str) -> int:
    """Of what ``teacher`` gives of a layer."""
    nothing = teacher.stream(np.array([-1]), 1)
    return teacher.lookup(teacher.arrays, nothing, None).hidden[layer].shape[-1]
