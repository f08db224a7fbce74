"""The table that a student's embedding starts from: the rows of Table 7."""

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int

from xdistil_jax import files
from xdistil_jax.backbone import pretrained_table
from xdistil_jax.configs import StudentConfig
from xdistil_jax.data.sources import missing
from xdistil_jax.data.tokenizer import WITHIN_WORD, Tokenizer
from xdistil_jax.data.vectors import read_vectors
from xdistil_jax.session import Ensemble, Given, Session, Trained
from xdistil_jax.sharding import fetched
from xdistil_jax.transplant import transplant


def start_table(
    session: Session,
    teacher: Trained | Given | Ensemble,
    tokenizer: Tokenizer,
    kept: Int[np.ndarray, "V"] | None,
) -> Float[np.ndarray, "V D"] | None:
    """A row for each piece of the student's ``tokenizer``, not reduced yet.

    None: all are drawn, or the checkpoint's. ``kept[student's id]`` is the teacher's id, or None
    where the student's tokenizer is another. Of the teacher's table only these rows are taken, so
    that what is kept in fewer dimensions is the best for the pieces of the text, and for no others.

    Raises:
        ValueError: for a way to start that this teacher, or the file of vectors, doesn't allow.
        data.corpus.CorpusError: naming a broken line of that file.
    """
    config = session.experiment.student
    if config.embedding == "random" or (config.checkpoint and config.embedding == "svd"):
        return None
    if config.embedding == "vectors":
        return _from_file(session, tokenizer)
    teacher = teacher.lead if isinstance(teacher, Ensemble) else teacher
    if isinstance(teacher, Given):
        return _without_teacher(config)
    if config.embedding_source == "pretrained":
        tags = teacher.tagset.tags
        table = pretrained_table(session.experiment.teacher, teacher.tokenizer, tags)
    else:
        table = fetched(teacher.params["embed"]["table"])
    if kept is not None:
        table = table[kept]
    else:
        key = jax.random.key(session.experiment.run.seed)
        table = transplant(table, teacher.tokenizer, tokenizer, key)
    name, width = config.table_width
    if config.embedding != "full" and width > min(table.shape):
        raise ValueError(
            f"student.{name} is {width}, but the teacher's table is {table.shape[0]:,} × "
            f"{table.shape[1]}: set it to {min(table.shape)} or less, or student.embedding to "
            "full, random or vectors"
        )
    return table


def identify_vectors(config: StudentConfig) -> str:
    """A checksum of the file of vectors, or "": the same path may hold others another day.

    Raises:
        data.corpus.CorpusError: if there is no such file.
    """
    if config.vectors and not Path(config.vectors).is_file():
        raise missing(config.vectors)
    return config.vectors and files.checksum(config.vectors)


def _without_teacher(config: StudentConfig) -> None:
    """Nothing, as by default, where only outputs are there; more can't be had of them."""
    if config.embedding not in ("svd", "projected") or config.embedding_source == "pretrained":
        raise ValueError(
            f"student.embedding is {config.embedding}, of the {config.embedding_source} teacher, "
            "but teacher.outputs holds no embeddings: set it to random or vectors"
        )


def _from_file(session: Session, tokenizer: Tokenizer) -> Float[np.ndarray, "V E"]:
    """The vectors of pieces that stand in ``student.vectors`` as words; the others are drawn.

    As they are spelled or else in lower case, without the mark of a piece inside a word. What is
    missing has the mean and the deviation of what is there.
    """
    config, run = session.experiment.student, session.experiment.run
    special = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id)
    words = {
        number: tokenizer.backend.decode([number]).removeprefix(WITHIN_WORD).strip()
        for number in sorted(tokenizer.backend.get_vocab().values())
        if number not in special
    }
    wanted = {form for word in words.values() for form in (word, word.lower()) if form}
    width = config.table_width[1]
    vectors = read_vectors(config.vectors, wanted, width)
    rows = {
        number: vectors[word if word in vectors else word.lower()]
        for number, word in words.items()
        if word in vectors or word.lower() in vectors
    }
    if not rows:
        raise ValueError(
            f"{config.vectors}: none of the student's {len(words):,} pieces is a word of it; "
            "expected vectors of words in the languages of the text (student.vectors)"
        )
    session.say(
        f"embedding: {len(rows):,} of {len(words):,} pieces found in {config.vectors} "
        f"({len(rows) / len(words):.0%}), the others drawn at random"
    )
    found = np.stack(list(rows.values()))
    shape = (tokenizer.vocab_size, width)
    drawn = np.asarray(jax.random.normal(jax.random.key(run.seed), shape))
    table = (drawn * found.std(0) + found.mean(0)).astype(np.float32)
    table[list(rows)] = found
    return table
