"""The student: its run folder, and its training by the plan."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from xdistil_jax import files, hosts, storage, trees
from xdistil_jax.alignment import find_target
from xdistil_jax.classification import separated, takes_pairs
from xdistil_jax.data.corpus import Corpus, Sentence
from xdistil_jax.data.encode import EncodedStore
from xdistil_jax.deploy.bundle import Bundle, load_bundle, save_bundle
from xdistil_jax.deploy.calibration import fit_temperature
from xdistil_jax.deploy.words import in_numpy
from xdistil_jax.distill.stages import Stage, describe
from xdistil_jax.distill.strategies import proper_name
from xdistil_jax.evaluation import can_tag, check_teacher
from xdistil_jax.experiment import Experiment, hash8, settings
from xdistil_jax.labels import ClassSet, Labels
from xdistil_jax.models.transformer import TransformerSpec
from xdistil_jax.session import Session, Trained
from xdistil_jax.start import identify_vectors, start_table
from xdistil_jax.students import (
    StudentSpec,
    deployed,
    read_spec,
    start_identity,
    start_student,
    student_spec,
)
from xdistil_jax.targets import (
    Teaching,
    Text,
    attentive,
    cache_teacher,
    encode_text,
    target_width,
)
from xdistil_jax.training import Peers, train_plan
from xdistil_jax.types import Params


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
        spec = replace(spec, teacher_width=target_width(cache))
        stages = experiment.plan(spec.groups)
    if cache is not None and (attends := getattr(spec, "attends", ())):
        cache = attentive(session, text, teacher, cache, attends)
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
