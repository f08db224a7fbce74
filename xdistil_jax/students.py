"""Students as an experiment describes them: sizes, the parameters they start from, what is kept."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float

from xdistil_jax import trees
from xdistil_jax.alignment import Target
from xdistil_jax.backbone import checkpoint_identity
from xdistil_jax.configs import StudentConfig
from xdistil_jax.data.tokenizer import Tokenizer, load_tokenizer
from xdistil_jax.deploy.bundle import Bundle, load_bundle
from xdistil_jax.deploy.transformer import ACTIVATIONS
from xdistil_jax.experiment import restore
from xdistil_jax.labels import Labels
from xdistil_jax.models import hub
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.checkpoints import load_encoder, read_config_spec
from xdistil_jax.models.embeddings import join_embedding, start_embedding
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.families import FAMILIES
from xdistil_jax.models.functional import build
from xdistil_jax.models.transformer import TransformerSpec
from xdistil_jax.transplant import transplant
from xdistil_jax.types import Params

StudentSpec = BiLSTMSpec | TransformerSpec
KINDS: dict[str, type[Any]] = {"bilstm": BiLSTMSpec, "transformer": TransformerSpec}
_SIZES = ("layers", "width", "heads", "feed_forward")


def own_tokenizer(config: StudentConfig) -> str:
    """Name of the tokenizer that is the student's own; empty where it is the teacher's."""
    if config.tokenizer:
        return "" if config.tokenizer == "teacher" else config.tokenizer
    return "" if hub.own_student(config.checkpoint) else config.checkpoint


def start_identity(config: StudentConfig) -> str:
    """Of what the student starts from."""
    return checkpoint_identity(str(hub.own_student(config.checkpoint) or config.checkpoint))


def student_spec(
    config: StudentConfig,
    target: Target,
    vocab_size: int,
    classes: int,
    max_length: int,
    *,
    pool: Literal["none", "last", "max"] = "none",
) -> StudentSpec:
    """The student that is to be trained, to imitate ``target``; ``pool`` is that of a BiLSTM.

    Raises:
        ValueError: for sizes that are missing, of the other kind, or not the checkpoint's.
    """
    if config.kind == "transformer":
        encoder = _encoder(config, vocab_size, classes, max_length)
        return TransformerSpec(encoder, target.width, target.layers, attends=target.attends)
    if given := [name for name in _SIZES if getattr(config, name)]:
        raise ValueError(
            f"student.{given[0]} is {getattr(config, given[0])}, but a BiLSTM has none: add "
            "--student.kind transformer"
        )
    if config.checkpoint and not hub.own_student(config.checkpoint):
        raise ValueError(
            f"student.checkpoint {config.checkpoint} is no student of ours; for a Hugging Face "
            "encoder add --student.kind transformer"
        )
    layer, *others = target.layers
    return BiLSTMSpec(
        vocab_size, config.embed, config.hidden, target.width, classes, config.projection,
        config.head_on, layer, config.dropout, pool=pool, also=tuple(others),
    )  # fmt: skip


def _encoder(config: StudentConfig, vocab_size: int, classes: int, max_length: int) -> EncoderSpec:
    """The encoder of a transformer student."""
    sizes = {name: getattr(config, name) for name in _SIZES}
    if not config.checkpoint:
        sizes["layers"] = config.depth
        if missing := [name for name in ("width", "heads") if sizes[name] < 1]:
            raise ValueError(f"student.{missing[0]} is {sizes[missing[0]]}: a transformer needs it")
        sizes["feed_forward"] = sizes["feed_forward"] or 4 * sizes["width"]
        return EncoderSpec(
            vocab_size, **sizes, positions=max(max_length, 16), token_types=0, classes=classes,
            dropout=config.dropout, stacked=False,
        )  # fmt: skip
    own = _checkpoint_encoder(config, classes)
    for name, wanted in sizes.items():
        found = getattr(own, name)
        if wanted and wanted != found and not (name == "layers" and wanted < found):
            raise ValueError(
                f"student.{name} is {wanted}, but {config.checkpoint} has {found}: leave it at 0"
            )
    if max_length > own.longest:
        raise ValueError(
            f"teacher.max_length is {max_length}, but student.checkpoint {config.checkpoint} has "
            f"{own.longest} positions: set it to at most that"
        )
    return replace(
        own, vocab_size=vocab_size, layers=config.layers or own.layers, classes=classes,
        dropout=config.dropout, stacked=False,
    )  # fmt: skip


def _checkpoint_encoder(config: StudentConfig, classes: int) -> EncoderSpec:
    """What the student's checkpoint is an encoder of."""
    checkpoint = config.checkpoint
    if folder := hub.own_student(checkpoint):
        spec = read_spec(load_bundle(folder))
        if not isinstance(spec, TransformerSpec):
            raise ValueError(f"student.checkpoint {folder} is a BiLSTM: set --student.kind bilstm")
        return spec.encoder
    spec = read_config_spec(checkpoint, classes, revision=config.revision or None)
    if not isinstance(spec, EncoderSpec):
        kinds = ", ".join(name for name, each in FAMILIES.items() if each.kind is EncoderSpec)
        raise ValueError(
            f"student.checkpoint {checkpoint} is a {spec.family}: a student starts from {kinds}"
        )
    if spec.activation not in ACTIVATIONS:
        raise ValueError(
            f"student.checkpoint {checkpoint} computes with {spec.activation}, in which no student "
            f"can be deployed: expected {', '.join(ACTIVATIONS)}"
        )
    return spec


def read_spec(bundle: Bundle) -> StudentSpec:
    """The model that a bundle holds the weights of.

    Raises:
        ValueError: for a kind or a size that this version doesn't know.
    """
    if bundle.kind not in KINDS:
        raise ValueError(f"a student of kind {bundle.kind!r}: there are {', '.join(KINDS)}")
    return restore(bundle.sizes, KINDS[bundle.kind])


def start_student(
    config: StudentConfig,
    spec: StudentSpec,
    tokenizer: Tokenizer,
    tagset: Labels,
    table: Float[np.ndarray, "V D"] | None,
    *,
    key: Array,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[StudentSpec, Params]:
    """The student before its training, and its spec, with a factored embedding if it has one.

    Its body starts from its checkpoint, or is random; its embedding from ``table``, the teacher's
    rows of its pieces (None: the checkpoint's, or random, too).

    Raises:
        ValueError: for a checkpoint that doesn't fit.
    """
    if table is not None:
        spec = with_table(config, spec, table.shape[1])
    params, scale = build(spec).init(key), config.embedding_scale
    if config.checkpoint:
        params = _from_checkpoint(config, params, tokenizer, tagset, key, say)
    if table is None:
        return spec, params
    if isinstance(spec, TransformerSpec):
        scale *= spec.encoder.initializer
        if table.shape[1] == spec.encoder.width and config.embedding in ("svd", "full"):
            return spec, {**params, "embed": {**params["embed"], "table": table}}
    return spec, start_embedding(
        params, table, scale=scale, how=config.embedding, removed=config.removed_directions
    )


def with_table(config: StudentConfig, spec: StudentSpec, width: int) -> StudentSpec:
    """``spec`` as a teacher's table of ``width``, from which its embedding starts, makes it.

    Raises:
        ValueError: if the student has to take the table whole and is of another width.
    """
    if config.embedding == "projected":
        return replace(spec, source_width=width)
    return _full(spec, width) if config.embedding == "full" else spec


def _full(spec: StudentSpec, width: int) -> StudentSpec:
    """A student that takes a table of ``width`` as it is."""
    if isinstance(spec, BiLSTMSpec):
        return replace(spec, embed=width)
    if width != spec.encoder.width:
        raise ValueError(
            f"student.embedding is full, the teacher's table is {width} wide, and student.width "
            f"{spec.encoder.width}: make them equal, or take svd"
        )
    return spec


def _from_checkpoint(
    config: StudentConfig,
    params: Params,
    tokenizer: Tokenizer,
    tagset: Labels,
    key: Array,
    say: Callable[[str], None],
) -> Params:
    """``params``, with all that the checkpoint has of this path and shape in their place.

    Its table only by default: another ``embedding`` takes its place.
    """
    checkpoint = config.checkpoint
    if folder := hub.own_student(checkpoint):
        bundle = load_bundle(folder)
        old, found = bundle.tokenizer, dict(bundle.weights)
        if bundle.tagset != tagset:
            found = {path: leaf for path, leaf in found.items() if not path.startswith("head/")}
    else:
        loaded = load_encoder(
            checkpoint, len(tagset), labels=tagset.tags, key=key, stacked=False,
            revision=config.revision or None,
        )  # fmt: skip
        old = load_tokenizer(checkpoint, config.revision or None)
        found = dict(trees.leaves(loaded.params))
    if old.vocab_size > len(found["embed/table"]):
        raise ValueError(
            f"{checkpoint}: its tokenizer has {old.vocab_size:,} pieces, its embedding "
            f"{len(found['embed/table']):,} rows; they don't belong together"
        )
    table = found.pop("embed/table")
    if config.embedding == "svd":
        found["embed/table"] = transplant(table, old, tokenizer, key)
    fresh = dict(trees.leaves(params))
    fits = {p: found[p] for p, leaf in fresh.items() if p in found and found[p].shape == leaf.shape}
    left = sorted(fresh.keys() - fits.keys())
    if not any(not path.startswith(("embed/", "head/")) for path in fits):
        raise ValueError(
            f"student.checkpoint {checkpoint} has nothing that fits this student: give the "
            "student its sizes"
        )
    say(f"student: starts from {checkpoint}" + (f"; fresh: {', '.join(left)}" if left else ""))
    return trees.unflatten({**fresh, **fits})


def deployed(spec: StudentSpec, params: Params) -> tuple[StudentSpec, Params]:
    """The student without what only its training needs: the teacher's table, projections."""
    params = join_embedding(jax.tree.map(np.asarray, params))
    if isinstance(spec, TransformerSpec):
        params.pop("projection", None)
        return replace(spec, imitates=(), attends=(), source_width=0), params
    own = {name: params["projection"][name] for name in ("kernel", "bias")}
    return replace(spec, also=(), source_width=0), {**params, "projection": own}
