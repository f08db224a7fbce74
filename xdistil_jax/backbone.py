"""The backbone of a teacher: tokenizer and encoder before fine-tuning, fresh or a checkpoint's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float

from xdistil_jax import files
from xdistil_jax.configs import TeacherConfig
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.cutting import cut_tokenizer
from xdistil_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from xdistil_jax.models.checkpoints import keep_lowest, load_encoder
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.families import AnySpec
from xdistil_jax.models.functional import build
from xdistil_jax.sharding import fetched
from xdistil_jax.transplant import transplant
from xdistil_jax.types import Params

_CHUNK = 8192


def choose_tokenizer(config: TeacherConfig, text: Sequence[Sentence]) -> Tokenizer:
    """The checkpoint's; or one trained on the text; or a given one, cut to the text or whole.

    Raises:
        ValueError: for a whole vocabulary where none is given.
    """
    refuse_unnamed_vocabulary(config)
    if not config.tokenizer and not config.checkpoint:
        return train_tokenizer(text, config.vocab_size)
    if not config.tokenizer:
        return _own_tokenizer(config)
    tokenizer = load_tokenizer(config.tokenizer)
    if config.whole_vocabulary:
        return tokenizer
    # Its embeddings are to be learned from this text, so pieces that never occur are dead weight.
    used = np.zeros(tokenizer.vocab_size, bool)
    for start in range(0, len(text), _CHUNK):
        words = {word for sentence in text[start : start + _CHUNK] for word in sentence.words}
        used[tokenizer.word_pieces(list(words))[0]] = True
    return cut_tokenizer(tokenizer, np.flatnonzero(used))[0]


def refuse_unnamed_vocabulary(config: TeacherConfig) -> None:
    """Refuse a whole vocabulary where none is given.

    Raises:
        ValueError: saying how to name it.
    """
    if config.whole_vocabulary and not config.tokenizer:
        raise ValueError(
            "teacher.whole_vocabulary is about a given tokenizer: name it, teacher.tokenizer"
        )


def start_backbone(
    config: TeacherConfig, tokenizer: Tokenizer, tags: tuple[str, ...], key: Array
) -> tuple[AnySpec, Params, tuple[str, ...]]:
    """The encoder, and the tags of its head.

    Raises:
        models.checkpoints.CheckpointError: for a checkpoint that can't be used.
        ValueError: for lengths or layers that it doesn't have, or a tokenizer that isn't its own.
    """
    if not config.checkpoint:
        spec = EncoderSpec(
            tokenizer.vocab_size, config.width, config.layers, config.heads,
            config.feed_forward, positions=max(config.max_length, 16), classes=len(tags),
            dropout=config.dropout, word_dropout=config.word_dropout,
        )  # fmt: skip
        return spec, build(spec).init(key), tags
    revision = config.revision or None
    if config.fine_tune:
        spec, params, own = load_encoder(
            config.checkpoint, len(tags), labels=tags, key=key, revision=revision
        )
    else:
        spec, params, own = load_encoder(config.checkpoint, revision=revision)
    spec, params = fitted(config, tokenizer, spec, params, key)
    return spec, params, own or tags


def pretrained_table(
    config: TeacherConfig, tokenizer: Tokenizer, tags: tuple[str, ...]
) -> Float[np.ndarray, "V D"]:
    """The teacher's embeddings before it was fine-tuned: those of its checkpoint.

    Raises:
        ValueError: for a teacher without a checkpoint, or one that is taken as it is.
    """
    if not config.checkpoint or not config.fine_tune:
        lacks = "is fine-tuned already" if config.checkpoint else "has no checkpoint"
        raise ValueError(
            f"student.embedding_source is pretrained, but the teacher {lacks}: set it to "
            "fine-tuned, or teacher.checkpoint to a model that is to be fine-tuned"
        )
    params = start_backbone(config, tokenizer, tags, jax.random.key(config.seed))[1]
    return fetched(params["embed"]["table"])


def fitted(
    config: TeacherConfig, tokenizer: Tokenizer, spec: AnySpec, params: Params, key: Array
) -> tuple[AnySpec, Params]:
    """The checkpoint's encoder with the layers and the vocabulary that were asked for."""
    if config.max_length > spec.longest:
        raise ValueError(
            f"teacher.max_length is {config.max_length}, but {config.checkpoint} has "
            f"{spec.longest} positions: set it to at most that"
        )
    if config.keep_layers:
        if config.keep_layers > spec.layers:
            raise ValueError(
                f"teacher.keep_layers is {config.keep_layers}; the checkpoint has {spec.layers}"
            )
        spec, params = keep_lowest(spec, params, config.keep_layers)
    own = _own_tokenizer(config)
    if own.vocab_size > spec.vocab_size:
        raise ValueError(
            f"{config.checkpoint}: its tokenizer has {own.vocab_size:,} pieces, its embedding "
            f"{spec.vocab_size:,} rows; they don't belong together"
        )
    if own.fingerprint != tokenizer.fingerprint:
        spec = replace(spec, vocab_size=tokenizer.vocab_size)
        params["embed"]["table"] = transplant(params["embed"]["table"], own, tokenizer, key)
    return spec, params


def _own_tokenizer(config: TeacherConfig) -> Tokenizer:
    """The checkpoint's."""
    return load_tokenizer(config.checkpoint, config.revision or None)


def checkpoint_identity(checkpoint: str) -> str:
    """Of a local checkpoint, what its files hold: the same path may hold others another day."""
    folder = Path(checkpoint).expanduser()
    if not checkpoint or not folder.is_dir():
        return checkpoint
    found = [*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("vocab.txt")]
    return " ".join(f"{path.name} {files.checksum(path)}" for path in sorted(found))
