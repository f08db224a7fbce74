"""What there is to compute: the text of an experiment, counted, and the sizes of its models.

Reads text, a tokenizer and config.json; touches no device.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from xdistil_jax.alignment import Target, imitated_layers
from xdistil_jax.configs import StudentConfig, TeacherConfig
from xdistil_jax.data.batches import choose_widths
from xdistil_jax.data.corpus import Corpus, load_corpus
from xdistil_jax.data.cutting import cut_tokenizer
from xdistil_jax.data.encode import encode_in_memory, piece_counts
from xdistil_jax.data.spool import join
from xdistil_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from xdistil_jax.estimate import Counts, Text
from xdistil_jax.experiment import Experiment
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.checkpoints import read_config_spec
from xdistil_jax.models.deberta import DebertaSpec
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.families import AnySpec
from xdistil_jax.models.modernbert import ModernBertSpec
from xdistil_jax.sizes import BiLSTMSizes, StudentSizes, TeacherSizes, TransformerSizes
from xdistil_jax.students import StudentSpec, student_spec, with_table
from xdistil_jax.teacher.names import kept_by
from xdistil_jax.teacher.outputs import sentence_hash
from xdistil_jax.teacher.shapes import padded_widths
from xdistil_jax.teacher.shards import distinct, keys

_CHUNK = 8192
# Where the tokenizer isn't here: mBERT's has 1.73 pieces a word on 20,000 sentences of WikiAnn in
# ten languages, from 1.38 (English) to 3.00 (Tamil).
PIECES_A_WORD = 1.7
# For students of no text: the pieces of mBERT that the paper's has, and our tags.
USUAL_VOCAB, USUAL_CLASSES, USUAL_WIDTH = 88_500, 7, 768


def count_text(experiment: Experiment) -> Counts:
    """Read the corpus and cut it as the teacher would, or guess where its tokenizer isn't here.

    All teachers and the student are taken to cut as the first teacher does.

    Raises:
        data.corpus.CorpusError: for text that can't be read.
    """
    corpus, config = load_corpus(experiment.data), experiment.teacher
    tokenizer = _local_tokenizer(config, corpus)
    if tokenizer is None:
        return _guess(experiment, corpus)
    return _count(experiment, corpus, tokenizer)


def _local_tokenizer(config: TeacherConfig, corpus: Corpus) -> Tokenizer | None:
    name = config.tokenizer or config.checkpoint
    if not name:
        return train_tokenizer(join(corpus.train, corpus.transfer), config.vocab_size)
    return load_tokenizer(name) if Path(name).exists() else None


def _count(experiment: Experiment, corpus: Corpus, tokenizer: Tokenizer) -> Counts:
    text, length = join(corpus.train, corpus.transfer), experiment.teacher.max_length
    used = np.zeros(tokenizer.vocab_size, np.int64)
    lengths, hashes = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.uint64)]
    train = 0
    for start in range(0, len(text), _CHUNK):
        part = text[start : start + _CHUNK]
        store = encode_in_memory(part, tokenizer, corpus.tagset, max_length=length)
        used += piece_counts([store], tokenizer.vocab_size)
        lengths.append(store.lengths)
        hashes.append(store.row_hashes())
        train += int((store.sentence + start < len(corpus.train)).sum())
    vocab = cut_tokenizer(tokenizer, np.flatnonzero(used))[0].vocab_size
    return _counts(
        experiment, np.concatenate(lengths), keys(np.concatenate(hashes)), train, vocab,
        len(corpus.tagset), "counted",
    )  # fmt: skip


def _guess(experiment: Experiment, corpus: Corpus) -> Counts:
    text = join(corpus.train, corpus.transfer)
    words = np.fromiter((len(sentence.words) for sentence in text), np.int64, len(text))
    whole = np.rint(words * PIECES_A_WORD).astype(np.int64) + 2
    hashes = bytearray()
    for sentence in text:
        hashes += sentence_hash(sentence.words)
    return _counts(
        experiment, np.minimum(whole, experiment.teacher.max_length),
        keys(np.frombuffer(hashes, "<u8").reshape(-1, 2)), len(corpus.train),
        USUAL_VOCAB, len(corpus.tagset),
        f"guessed: {PIECES_A_WORD:g} pieces a word, the teacher's tokenizer is not here",
    )  # fmt: skip


def _counts(
    experiment: Experiment,
    lengths: Int[np.ndarray, "R"],
    row_keys: Shaped[np.ndarray, "R"],
    train: int,
    vocab: int,
    classes: int,
    how: str,
) -> Counts:
    """Of all rows; the first ``train`` of them are those of the train set."""
    config = experiment.teacher
    return Counts(
        _in_buckets(lengths[:train], experiment.run.buckets),
        _in_buckets(lengths[train:], experiment.run.buckets),
        _in_widths(lengths[distinct(row_keys)], padded_widths(config.max_length)),
        vocab, classes, how,
    )  # fmt: skip


def _in_buckets(lengths: Int[np.ndarray, "R"], count: int) -> Text:
    return _in_widths(lengths, choose_widths(lengths, count) if len(lengths) else (1,))


def _in_widths(lengths: Int[np.ndarray, "R"], widths: Sequence[int]) -> Text:
    own = np.asarray(widths, np.int64)[np.searchsorted(widths, lengths)]
    slots = int(own.sum())
    mean = float((own * own).sum()) / slots if slots else 0.0
    return Text(len(lengths), int(lengths.sum()), slots, mean)


def teacher_sizes(
    config: TeacherConfig, counts: Counts, student: StudentConfig = StudentConfig()
) -> TeacherSizes | None:
    """The sizes of a teacher of ``student``; None where only its outputs are there.

    Raises:
        models.checkpoints.CheckpointError: for a checkpoint without a config.json that we know.
        ValueError: for layers to imitate that the teacher or the student doesn't have.
    """
    if config.outputs:
        return None
    spec = _teacher_spec(config, counts)
    relative = isinstance(spec, DebertaSpec) and spec.relative
    return TeacherSizes(
        Path(config.checkpoint).name or "teacher",
        _teacher_vocab(config, counts, spec),
        spec.width,
        spec.layers,
        spec.feed_forward,
        products=3 if isinstance(spec, ModernBertSpec) else 2,
        places=2 * spec.span * len(spec.kinds) if relative else 0,
        embedding_width=getattr(spec, "embedding_width", 0),
        fine_tuned=config.fine_tune,
        cached=len(imitated_layers(config, student, spec)),
    )


def _teacher_vocab(config: TeacherConfig, counts: Counts, spec: AnySpec) -> int:
    if not config.tokenizer:
        return spec.vocab_size
    whole = config.whole_vocabulary and Path(config.tokenizer).exists()
    return load_tokenizer(config.tokenizer).vocab_size if whole else counts.vocab


def _teacher_spec(config: TeacherConfig, counts: Counts) -> AnySpec:
    if not config.checkpoint:
        sizes = config.width, config.layers, config.heads, config.feed_forward
        return EncoderSpec(config.vocab_size, *sizes, classes=counts.classes)
    spec = read_config_spec(config.checkpoint, counts.classes, revision=config.revision or None)
    return replace(spec, layers=min(config.keep_layers or spec.layers, spec.layers))


def planned_student(
    experiment: Experiment, vocab: int, classes: int, teachers: Sequence[TeacherSizes | None]
) -> StudentSpec:
    """The student in training; ``teachers`` are those of the experiment, in order.

    Of the ``vocab`` pieces of the text it keeps at most ``student.vocab_size``.

    Raises:
        ValueError: for sizes that are missing or wrong; see ``students.student_spec``.
    """
    config, ensemble, lead = experiment.student, experiment.ensemble, teachers[0]
    widths = [experiment.teacher.width if each is None else each.width for each in teachers]
    first = len(teachers) == 1 or ensemble.states == "first"
    width = widths[0] if first else ensemble.width or sum(widths)
    kept = kept_by(experiment.teacher.codec)
    if config.imitate == "coordinates" and isinstance(kept, int):
        width = min(kept, width)
    count = 1 if lead is None or not first else lead.cached
    target = Target(width, tuple(f"state_{number}" for number in range(count)))
    own = min(vocab, config.vocab_size or vocab)
    spec = student_spec(config, target, own, classes, experiment.teacher.max_length)
    if lead is None:
        return spec
    return with_table(config, spec, lead.embedding_width or lead.width)


def student_sizes(spec: StudentSpec) -> StudentSizes:
    """The sizes of a student."""
    if isinstance(spec, BiLSTMSpec):
        return BiLSTMSizes(
            spec.vocab_size, spec.embed, spec.hidden, spec.teacher_width, spec.classes,
            spec.head_on, spec.source_width, 1 + len(spec.also),
        )  # fmt: skip
    own = spec.encoder
    return TransformerSizes(
        own.vocab_size, own.width, own.layers, own.feed_forward, spec.teacher_width, own.classes,
        own.positions, own.token_types, own.embedding_width, own.pre_norm, own.pooler,
        len(spec.imitates), spec.source_width,
    )  # fmt: skip


def all_teachers(experiment: Experiment, counts: Counts) -> list[TeacherSizes | None]:
    """The sizes of the experiment's teachers, in order; see ``teacher_sizes``."""
    configs = (experiment.teacher, *experiment.ensemble.teachers)
    return [teacher_sizes(config, counts, experiment.student) for config in configs]


def frame(experiment: Experiment) -> tuple[StudentSpec, str]:
    """A student whose vocabulary, classes and width of the teacher count, and where they are from.

    Of the experiment's text and teacher, or the usual sizes where it names no text.
    """
    config, data = experiment.student, experiment.data
    if not (data.train or data.root or data.synthetic):
        vocab, target = config.vocab_size or USUAL_VOCAB, Target(USUAL_WIDTH, ("state",))
        length = experiment.teacher.max_length
        usual = student_spec(config, target, vocab, USUAL_CLASSES, length)
        return usual, "no text given: usual sizes"
    counts = count_text(experiment)
    teachers = all_teachers(experiment, counts)
    return planned_student(experiment, counts.vocab, counts.classes, teachers), counts.how


def planned_groups(experiment: Experiment) -> tuple[str, ...] | None:
    """The student's groups as they will be; None where not all sizes are on this machine.

    Only they tell whether a transformer has a projection.
    """
    configs = (experiment.teacher, *experiment.ensemble.teachers)
    here = all(_is_here(each.checkpoint) for each in (*configs, experiment.student))
    if not here or any(each.outputs for each in configs):
        return None
    nothing = Text(0, 0, 0, 0.0)
    counts = Counts(nothing, nothing, nothing, USUAL_VOCAB, USUAL_CLASSES, "")
    teachers = all_teachers(experiment, counts)
    return planned_student(experiment, counts.vocab, counts.classes, teachers).groups


def _is_here(checkpoint: str) -> bool:
    return not checkpoint or Path(checkpoint).exists()
