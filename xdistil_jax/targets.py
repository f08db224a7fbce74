"""What the student learns from: train and transfer text, and what its teacher says of that."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from xdistil_jax.data.corpus import Corpus, Sentence
from xdistil_jax.data.cutting import cut_tokenizer
from xdistil_jax.data.encode import EncodedStore, blocks, piece_counts
from xdistil_jax.data.spool import join
from xdistil_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from xdistil_jax.labels import ClassSet
from xdistil_jax.models.functional import build
from xdistil_jax.session import Ensemble, Given, Session, Trained
from xdistil_jax.students import own_tokenizer
from xdistil_jax.teacher.anchor import AnchoredTeacher, anchor
from xdistil_jax.teacher.attention import AttentiveTeacher
from xdistil_jax.teacher.build import build_cache
from xdistil_jax.teacher.ensemble import combine
from xdistil_jax.teacher.manifest import CacheSettings
from xdistil_jax.teacher.outputs import anchor_outputs
from xdistil_jax.teacher.source import OnlineTeacher, Teacher

Teaching = Trained | Given | Ensemble


def _lead(teacher: Teaching) -> Trained | Given:
    return teacher.lead if isinstance(teacher, Ensemble) else teacher


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
            only=teacher.cache or None,
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


def attentive(
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


def target_width(teacher: Teacher) -> int:
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
