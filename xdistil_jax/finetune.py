"""The teacher: a checkpoint or a fresh encoder, fine-tuned once by a one-stage plan, then found."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from xdistil_jax import files, hosts, storage
from xdistil_jax.alignment import imitated_layers
from xdistil_jax.backbone import checkpoint_identity, choose_tokenizer, start_backbone
from xdistil_jax.classification import separated
from xdistil_jax.configs import TeacherConfig
from xdistil_jax.data.corpus import Corpus
from xdistil_jax.data.spool import join
from xdistil_jax.data.tokenizer import Tokenizer
from xdistil_jax.distill.stages import Stage, Term
from xdistil_jax.experiment import hash8, settings
from xdistil_jax.label_map import LabelMap
from xdistil_jax.labels import Labels
from xdistil_jax.models import partition
from xdistil_jax.models.checkpoints import load_encoder, save_encoder
from xdistil_jax.models.families import AnySpec
from xdistil_jax.session import Ensemble, Given, Session, Trained
from xdistil_jax.sharding import by_rules, fetched, lay, make_mesh, placer, platform
from xdistil_jax.teacher.codec import find_codec
from xdistil_jax.teacher.ensemble import normalised
from xdistil_jax.teacher.manifest import identify_teacher
from xdistil_jax.teacher.outputs import read_outputs
from xdistil_jax.training import train_plan
from xdistil_jax.types import Params


def prepare_teacher(session: Session, corpus: Corpus) -> Trained | Given | Ensemble:
    """The experiment's teacher, or all of its teachers as one.

    Raises:
        ValueError: for weights that don't fit the teachers, an unknown codec, or one without the
            coordinates that the student is to imitate.
    """
    experiment, ensemble = session.experiment, session.experiment.ensemble
    configs = (experiment.teacher, *ensemble.teachers)
    codecs = [None if config.outputs else find_codec(config.codec) for config in configs]
    if experiment.student.imitate == "coordinates":
        heard = codecs if ensemble.states == "concatenated" else codecs[:1]
        if any(codec is None or codec.kept is None for codec in heard):
            raise ValueError(
                "student.imitate is coordinates, but the teacher's states are stored without a "
                "basis: set teacher.codec to one with it, such as pca-256, or imitate states"
            )
    texts = [text.partition("=") for text in ensemble.by_language]
    try:
        own = {code: tuple(map(float, numbers.split(","))) for code, _, numbers in texts}
    except ValueError:
        raise ValueError(
            f"ensemble.by_language {', '.join(ensemble.by_language)}: expected a language and a "
            "number for each teacher, as in ta=0,1"
        ) from None
    weights = {
        code: normalised(each, len(configs)) for code, each in {"": ensemble.weights, **own}.items()
    }
    known = {sentence.language for sentence in corpus.train} | {*experiment.data.zero_shot}
    if strange := own.keys() - known:
        raise ValueError(f"ensemble.by_language: no sentence of {', '.join(sorted(strange))}")
    members = tuple(
        given_outputs(session, corpus, config)
        if config.outputs
        else prepare_single(session, corpus, config)
        for config in configs
    )
    if len(members) == 1:
        return members[0]
    identity = hash8(ensemble, weights, [member.fingerprint for member in members])
    return Ensemble(members, weights, identity)


def _split_over(session: Session, config: TeacherConfig) -> Mesh | None:
    """The mesh over which the teacher's parameters are split, if they are."""
    mesh = split_mesh(tuple(session.mesh.devices.flat), config.tensor_parallel)
    if mesh is not None:
        hosts.acquaint(mesh)
    return mesh


def fine_tuning(config: TeacherConfig, spec: AnySpec) -> Stage:
    """The one stage of the teacher's plan: cross-entropy, all parameters."""
    recipe = config.recipe
    return Stage("teacher", (Term("ce"),), spec.groups, 1.0, recipe.schedule, recipe.stop)


def split_mesh(devices: Sequence[jax.Device], ways: int) -> Mesh | None:
    """The mesh over which a teacher is split whose heads are split ``ways``; None for 0.

    Raises:
        ValueError: if the devices don't divide into so many.
    """
    if ways < 0 or (ways and len(devices) % ways):
        raise ValueError(
            f"teacher.tensor_parallel is {ways}: expected 0, or a divisor of the number of "
            f"devices, {len(devices)}"
        )
    return make_mesh(devices, model=ways) if ways else None


def prepare_single(session: Session, corpus: Corpus, config: TeacherConfig) -> Trained:
    """The fine-tuned teacher: found, or trained by a one-stage plan of the same engine."""
    experiment = session.experiment
    tokenizer = choose_tokenizer(config, join(corpus.train, corpus.transfer))
    length = config.max_length
    train = session.encode(corpus.train, tokenizer, corpus.tagset, max_length=length)
    dev = session.encode(corpus.stopping, tokenizer, corpus.tagset, max_length=length)
    run_ = experiment.run
    # What is read of it later, and how that is stored, changes nothing of the teacher.
    made = {**settings(config), "layer": 0}
    del made["codec"], made["hidden_layers"]
    identity = hash8(
        made, run_.temperature, run_.buckets, run_.shards, run_.steps_per_call, run_.decoding,
        session.dtype, checkpoint_identity(config.checkpoint), train.identity,
        dev.identity,
    )  # fmt: skip
    folder = experiment.folder() / f"teacher-{identity}"
    key = jax.random.key(config.seed)
    tags = corpus.tagset.tags
    split_over = _split_over(session, config)
    session.look_up(folder, "model")
    if not hosts.primarys((folder / "model" / "config.json").is_file()):
        session.refuse_other(folder)
        spec, params, own = start_backbone(config, tokenizer, tags, key)
        spec = separated(spec, tokenizer, corpus.tagset)
        if config.fine_tune:
            session.say(f"teacher: fine-tuning in {folder}")
            stage = fine_tuning(config, spec)
            with session.timed("teacher"):
                params = train_plan(
                    session, folder, spec, params, (stage,), train, dev, corpus.tagset,
                    labelled=np.arange(train.rows), budget=config.token_budget, seed=config.seed,
                    split_over=split_over,
                ).params  # fmt: skip
        host = jax.tree.map(kept_by_primary, params)
        hosts.once(lambda: _save(folder / "model", tokenizer, spec, host, own))
        storage.settle(folder / "model")
    spec, params = _load(session, config, folder / "model", corpus.tagset, split_over)
    spec = separated(spec, tokenizer, corpus.tagset)
    # How it was regularised in training changes nothing of what it says.
    identity = identify_teacher(replace(spec, dropout=0.0), params)
    return Trained(
        spec, params, tokenizer, corpus.tagset, length, identity, folder,
        imitated_layers(config, experiment.student, spec), config.codec, split_over,
        config.cache,
    )  # fmt: skip


def kept_by_primary(leaf: Array | np.ndarray) -> np.ndarray | None:
    """A leaf on the host of the one process that writes it; the others help to gather it."""
    whole = fetched(leaf)
    return whole if hosts.is_primary() else None


def _save(
    folder: Path, tokenizer: Tokenizer, spec: AnySpec, params: Params, tags: Sequence[str]
) -> None:
    if not (folder / "config.json").exists():
        # Half of it, by an earlier version that was killed.
        shutil.rmtree(folder, ignore_errors=True)
    with files.atomic_folder(folder) as temporary:
        tokenizer.save(temporary, longest=spec.longest)
        save_encoder(temporary, spec, params, tags)


def _load(
    session: Session, config: TeacherConfig, folder: Path, tagset: Labels, split_over: Mesh | None
) -> tuple[AnySpec, Params]:
    """The saved teacher on the devices, its tags matched with ``tagset`` by name."""
    # A scan copies each layer's weights out of their stack: a fourteenth of the time on a CPU,
    # where the longer program compiles in half a second.
    stacked = platform(session.mesh) != "cpu"
    if split_over is None:
        spec, params, own = load_encoder(folder, stacked=stacked, place=placer(session.mesh))
    else:
        spec, params, own = load_encoder(folder, stacked=stacked)
        shardings = by_rules(params, partition.rules(spec, split_over), split_over)
        params = lay(params, shardings)
    if own != tagset.tags:
        mapped = LabelMap.of(own or (), tagset, _renamed(config))
        spec = replace(spec, columns=mapped.columns)
        if told := mapped.describe():
            session.say(f"teacher: {told}")
    return spec, params


def given_outputs(session: Session, corpus: Corpus, config: TeacherConfig) -> Given:
    """The outputs in ``config.outputs``, their tags matched with the data's by name."""
    outputs = read_outputs(config.outputs)
    if outputs.tags != corpus.tagset.tags:
        mapped = LabelMap.of(outputs.tags, corpus.tagset, _renamed(config))
        lookup = replace(outputs.lookup, columns=mapped.columns)
        outputs = outputs._replace(lookup=lookup)
        if told := mapped.describe():
            session.say(f"teacher: {told}")
    identity = f"{outputs.identity} {outputs.lookup.columns}"
    return Given(outputs, config.max_length, identity)


def _renamed(config: TeacherConfig) -> dict[str, str]:
    pairs = [text.partition("=") for text in config.labels]
    if wrong := [f"{a}{sign}{b}" for a, sign, b in pairs if not (a and sign and b)]:
        raise ValueError(f"teacher.labels: {wrong[0]!r} is no THEIRS=OURS, such as MISC=O")
    return {theirs: ours for theirs, _, ours in pairs}
