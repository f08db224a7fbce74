"""A teacher from text: masked language modelling, from scratch or continued, as one stage."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xdistil_jax import files, hosts, storage
from xdistil_jax.backbone import (
    checkpoint_identity,
    choose_tokenizer,
    fitted,
    refuse_unnamed_vocabulary,
)
from xdistil_jax.compilation import persistent_cache
from xdistil_jax.configs import RunConfig, TeacherConfig
from xdistil_jax.data.corpus import DataSpec, ReadLog, load_text
from xdistil_jax.data.encode import EncodedStore, encode
from xdistil_jax.data.packing import pack
from xdistil_jax.data.spool import Sentences
from xdistil_jax.data.tokenizer import MASKS, Tokenizer, load_tokenizer
from xdistil_jax.distill.loop import PlanResult, StopFlag, Writer
from xdistil_jax.distill.masking import Masking
from xdistil_jax.distill.stages import Schedule, Stage, StopRule, Term
from xdistil_jax.distill.strategies import Recipe
from xdistil_jax.experiment import Experiment, hash8, settings
from xdistil_jax.finetune import kept_by_primary
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.models.masked_lm import MaskedLMSpec, load_masked_lm, save_masked_lm
from xdistil_jax.session import Say, Session
from xdistil_jax.training import train_plan
from xdistil_jax.trees import leaves
from xdistil_jax.types import Params

# Packed rows: with fewer, none could be held out.
_FEWEST = 10


@dataclass(frozen=True)
class Pretraining:
    """A Hugging Face folder that --teacher takes, made by whole-word masking of plain text.

    The text is all that a run with this ``data`` may train on; or, without labelled files, the
    unlabelled ones. The encoder has the sizes in ``teacher``, or is its checkpoint; the tokenizer
    is trained, given (and cut to the text), or the checkpoint's. Sentences of a language lie end to
    end in rows of ``teacher.max_length`` pieces. The parameters with the least held-out loss are
    kept.
    """

    out: str
    """A folder: the model, and below it all that it takes to go on after a stop."""
    data: DataSpec = DataSpec()
    teacher: TeacherConfig = TeacherConfig(
        token_budget=8192,
        recipe=Recipe(
            Schedule(peak=5e-4, warmup=0.05, decay="linear", weight_decay=0.01),
            StopRule(epochs=10, evaluations=2, patience=6),
        ),
    )
    run: RunConfig = RunConfig()
    rate: float = 0.15
    """The share of the pieces that is hidden."""


# What belongs to a teacher that is fine-tuned, cached or given as outputs.
_MEANINGLESS = (
    "outputs", "layer", "codec", "fine_tune", "labels", "min_f1", "cache", "tensor_parallel",
)  # fmt: skip


def pretrain(
    config: Pretraining,
    *,
    say: Say = lambda message: None,
    progress: Writer | None = None,
    stop: StopFlag | None = None,
) -> dict[str, Any]:
    """Make the teacher in ``config.out``, go on with it, or find it; gives its report.

    ``loss`` is the mean over hidden pieces of held-out rows, ``perplexity`` its exponential.

    Raises:
        distill.loop.InterruptedRunError: when ``stop`` was raised; the same call goes on.
        data.corpus.CorpusError, models.checkpoints.CheckpointError: for input that can't be used.
        ValueError: for settings that mean nothing here, or a folder that was begun with others.
    """
    _refuse(config)
    root = storage.local(config.out)
    files.require_writable(root, "--out")
    experiment = Experiment(
        "pretraining", data=config.data, teacher=config.teacher,
        run=replace(config.run, out=config.out),
    )  # fmt: skip
    with persistent_cache(root / "jax-cache") as compilations:
        session = Session.start(experiment, say=say, progress=progress, stop=stop)
        folder = experiment.folder()
        with hosts.primary_first():
            if hosts.is_primary():
                storage.refresh(root)
                storage.refresh(folder)
        if _is_begun(folder):
            _hold_to_settings(folder, _identity(config))
        if not hosts.primarys((root / "config.json").is_file()):
            _train(session, config, root, folder)
    report = _read_json(folder / "report.json")
    return {**report, "compilations": asdict(compilations)}


def _refuse(config: Pretraining) -> None:
    usual = TeacherConfig()
    for name in _MEANINGLESS:
        if getattr(config.teacher, name) != getattr(usual, name):
            raise ValueError(f"teacher.{name} means nothing in pretraining: leave it out")
    if config.run.out != RunConfig().out:
        raise ValueError("run.out means nothing in pretraining: give the folder with --out")
    refuse_unnamed_vocabulary(config.teacher)


def _identity(config: Pretraining) -> dict[str, Any]:
    """What a folder is made with, wherever it lies."""
    return {**settings(config), "out": ""}


def _is_begun(folder: Path) -> bool:
    """Is there what a run is held to? ``text.json`` is the last of that to be written."""
    return hosts.primarys((folder / "text.json").is_file())


def _hold_to_settings(folder: Path, wanted: dict[str, Any]) -> None:
    """Refuse other settings than the folder was begun with.

    Raises:
        ValueError: naming the first that differs.
    """
    found = _read_json(folder / "settings.json")
    # An earlier version had it here, False included; the teacher's settings leave that out.
    if found.pop("whole_vocabulary", False):
        found["teacher"]["whole_vocabulary"] = True
    if (was := _flat(found)) != (now := _flat(wanted)):
        name = next(name for name in {**was, **now} if was.get(name) != now.get(name))
        raise ValueError(
            f"{folder.parent} was begun with {name} {was.get(name)!r}, and now it is "
            f"{now.get(name)!r}: choose another --out, or remove the folder"
        )


def _read_json(file: Path) -> Any:
    """What the primary has written; hosts without a common disk fetch it."""
    storage.fetch_files([file])
    return json.loads(file.read_text(encoding="utf-8"))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    parts = (_flat(each, f"{name}.{key}" if name else key) for key, each in value.items())
    return {key: each for part in parts for key, each in part.items()}


def _train(session: Session, config: Pretraining, root: Path, folder: Path) -> None:
    """Text, tokenizer, rows, encoder, training; the model last."""
    with session.timed("text"):
        text, log = load_text(config.data, session.encoded)
        tokenizer = _tokenizer(config, text, folder)
        rows = _rows(session, config, text, tokenizer)
    made = hash8(rows.identity, checkpoint_identity(config.teacher.checkpoint))
    if _is_begun(folder):
        _hold_to_text(folder, made)
    _tell(session, log, rows)
    spec, params = _start(config.teacher, tokenizer)
    recipe = config.teacher.recipe
    stage = Stage("mlm", (Term("mlm"),), spec.groups, 0.0, recipe.schedule, recipe.stop)
    masking = _masking(tokenizer, config.rate)
    # A folder is held to nothing until all that the settings ask for could be made.
    if not _is_begun(folder):
        hosts.once(lambda: _begin(folder, _identity(config), made))
    session.say(f"pretraining in {folder}")
    with session.timed("training"):
        result = train_plan(
            session, folder, spec, params, (stage,), rows, None, None,
            labelled=np.zeros(0, np.int64), transfer=np.arange(rows.rows),
            budget=config.teacher.token_budget, seed=config.teacher.seed, masking=masking,
        )  # fmt: skip
    host = jax.tree.map(kept_by_primary, result.params)

    def save() -> None:
        report = _report(session, result, host, rows, log, tokenizer)
        files.write_atomic(folder / "report.json", json.dumps(report, indent=2))
        tokenizer.save(root, longest=spec.longest)
        save_masked_lm(root, spec, host)

    hosts.once(save)


def _tokenizer(config: Pretraining, text: Sentences, folder: Path) -> Tokenizer:
    """The tokenizer of the text; the one in ``folder``, if the run was begun."""
    chosen = folder / "tokenizer"

    def choose() -> None:
        tokenizer = choose_tokenizer(config.teacher, text)
        tokenizer.save(chosen, longest=config.teacher.max_length)

    # What lies there before the run is begun may be by other settings, which were refused.
    if not (_is_begun(folder) and hosts.primarys((chosen / "tokenizer.json").is_file())):
        hosts.once(choose)
    storage.fetch_files([chosen / name for name in ("tokenizer.json", "tokenizer_config.json")])
    return load_tokenizer(chosen)


def _rows(
    session: Session, config: Pretraining, text: Sentences, tokenizer: Tokenizer
) -> EncodedStore:
    """The packed rows; a sentence that is longer than a row is cut without overlap."""
    with hosts.primary_first():
        store = encode(
            text, tokenizer, None,
            max_length=config.teacher.max_length, folder=session.encoded, overlap=0,
        )  # fmt: skip
    rows = pack(store, folder=session.encoded)
    if rows.rows < _FEWEST:
        raise ValueError(
            f"the text fills {rows.rows} rows of {config.teacher.max_length} pieces, too few to "
            "hold any out: give more text, or a smaller teacher.max_length"
        )
    return rows


def _begin(folder: Path, identity: dict[str, Any], made: str) -> None:
    files.write_atomic(folder / "settings.json", json.dumps(identity, indent=2))
    files.write_atomic(folder / "text.json", json.dumps(made))


def _hold_to_text(folder: Path, made: str) -> None:
    if _read_json(folder / "text.json") != made:
        raise ValueError(
            f"{folder.parent}: its text or its checkpoint has changed since it was begun: put "
            "them back, or choose another --out"
        )


def _tell(session: Session, log: ReadLog, rows: EncodedStore) -> None:
    for note in log.notes:
        session.say(note)
    if log.skipped:
        session.say(f"{log.skipped:,} sentences skipped, the first: {log.skipped_places[0]}")
    pieces = len(rows.tokens)
    full = pieces / (rows.rows * rows.max_length)
    session.say(
        f"{pieces:,} pieces of {len(rows.languages)} languages in {rows.rows:,} rows of at most "
        f"{rows.max_length} ({full:.0%} full)"
    )


def _start(config: TeacherConfig, tokenizer: Tokenizer) -> tuple[MaskedLMSpec, Params]:
    """The model before training."""
    key = jax.random.key(config.seed)
    if not config.checkpoint:
        encoder = EncoderSpec(
            tokenizer.vocab_size, config.width, config.layers, config.heads, config.feed_forward,
            positions=max(config.max_length, 16), dropout=config.dropout,
            word_dropout=config.word_dropout,
        )  # fmt: skip
        spec = MaskedLMSpec.of(encoder)
        return spec, build(spec).init(key)
    whole, params = load_masked_lm(config.checkpoint, key=key, revision=config.revision or None)
    encoder, params = fitted(config, tokenizer, whole.encoder(1), params, key)
    own = load_tokenizer(config.checkpoint, config.revision or None)
    if own.fingerprint != tokenizer.fingerprint:
        params["head"]["bias"] = np.zeros(tokenizer.vocab_size, np.float32)
    return MaskedLMSpec.of(encoder), params


def _masking(tokenizer: Tokenizer, rate: float) -> Masking:
    numbers = map(tokenizer.backend.token_to_id, MASKS)
    mask_id = next((number for number in numbers if number is not None), None)
    if mask_id is None:
        raise ValueError(f"the tokenizer has no {' or '.join(MASKS)} to hide other pieces behind")
    added = tokenizer.backend.get_added_tokens_decoder().items()
    own = {tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id}
    special = {*own, mask_id, *(number for number, token in added if token.special)}
    return Masking(mask_id, tuple(sorted(special)), tokenizer.vocab_size, rate)


def _report(
    session: Session, result: PlanResult, params: Params, rows: EncodedStore, log: ReadLog,
    tokenizer: Tokenizer,
) -> dict[str, Any]:  # fmt: skip
    (stage,) = result.stages
    return {
        "loss": stage.best, "perplexity": math.exp(min(stage.best, 700.0)),
        "best_step": stage.best_step, "steps": stage.steps,
        "parameters": sum(leaf.size for _, leaf in leaves(params)),
        "vocabulary": tokenizer.vocab_size, "languages": list(rows.languages),
        "rows": rows.rows, "pieces": len(rows.tokens), "sentences": log.sentences,
        "seconds": {name: round(value, 1) for name, value in session.seconds.items()},
    }  # fmt: skip
