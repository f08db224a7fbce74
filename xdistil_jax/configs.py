"""What an experiment chooses, part by part: teacher, ensemble, student, run. Imports no jax."""

import difflib
from dataclasses import dataclass
from typing import Literal

from xdistil_jax.distill.stages import Schedule, StopRule
from xdistil_jax.distill.strategies import Recipe
from xdistil_jax.labels import Decoding
from xdistil_jax.models import hub

Precision = Literal["auto", "float32", "bfloat16"]
Placement = Literal["auto", "resident", "streamed"]


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher: a checkpoint to fine-tune, or sizes to train from scratch.

    ``checkpoint`` is a local Hugging Face folder or a hub name; empty trains one from scratch of
    the given sizes, on a WordPiece vocabulary of ``vocab_size`` pieces that is trained on the text
    or, with ``tokenizer`` (folder, vocabulary file or hub name), on a given one. That is cut to
    train and transfer text, unless ``whole_vocabulary``: then the teacher is the same whatever the
    transfer text. A checkpoint with another ``tokenizer`` keeps its blocks (the lowest
    ``keep_layers``; 0: all) and the embeddings of the pieces that both have. ``layer`` is the one
    whose states the student imitates (1 … L; 0: the last); ``fine_tune=False`` takes a
    token-classification checkpoint as it is, whatever its tags: they are matched by name, after
    ``labels`` has renamed types (``("PERSON=PER", "MISC=O")``). ``outputs`` is a folder that
    ``OutputsWriter`` has filled, instead of a model. ``codec`` is how the cache stores states:
    ``bf16``, ``int8``, or, as int8, principal coordinates: ``pca-256`` so many, ``pca-0.99`` as
    many as hold that share of the energy. ``word_dropout`` hides whole pieces in training;
    ``min_f1`` is the dev F1 in percent under which nothing is distilled; ``cache`` is the id of the
    one teacher cache that will do. ``hidden_layers`` are the layers that the student imitates,
    instead of ``layer``, where they are several (0: the embeddings). ``tensor_parallel`` is for a
    teacher that is too large for one device: 0 keeps it whole on each; n > 0 splits its parameters
    over all of them, and its heads and feed-forward blocks n ways.
    """

    checkpoint: str = ""
    outputs: str = ""
    revision: str = ""
    tokenizer: str = ""
    layer: int = 0
    codec: str = "bf16"
    max_length: int = 128
    fine_tune: bool = True
    labels: tuple[str, ...] = ()
    min_f1: float = 20.0
    keep_layers: int = 0
    token_budget: int = 1024
    recipe: Recipe = Recipe(
        Schedule(peak=1e-4, warmup=0.1, decay="linear", weight_decay=0.01),
        StopRule(epochs=3, evaluations=2, patience=6, min_steps=200),
    )
    vocab_size: int = 8000
    width: int = 256
    layers: int = 4
    heads: int = 4
    feed_forward: int = 1024
    dropout: float = 0.1
    word_dropout: float = 0.0
    seed: int = 0
    cache: str = ""
    tensor_parallel: int = 0
    hidden_layers: tuple[int, ...] = ()
    whole_vocabulary: bool = False


@dataclass(frozen=True)
class EnsembleConfig:
    """Teachers beside ``Experiment.teacher``, and how all of them become one.

    Logits are averaged as log-probabilities: ``weights`` has one for each teacher, that of
    ``Experiment.teacher`` first (empty: equal), ``by_language`` those of single languages, as in
    ``("ta=0,1",)``. The student imitates the ``states`` of the first, or those of all,
    concatenated; then ``width`` of their principal directions are kept (0: all as they are).
    """

    teachers: tuple[TeacherConfig, ...] = ()
    weights: tuple[float, ...] = ()
    by_language: tuple[str, ...] = ()
    states: Literal["first", "concatenated"] = "first"
    width: int = 0


@dataclass(frozen=True)
class StudentConfig:
    """The student: its sizes, and how its embedding starts.

    A BiLSTM (section 3 of the paper) has ``embed``, ``hidden``, ``projection`` and ``head_on``; a
    ``transformer`` has ``layers`` of ``width`` with ``heads`` and ``feed_forward`` (0: 4 × width).

    A teacher normalises its embeddings before it uses them, a BiLSTM does not: the SVD of its table
    (of its rows for the student's pieces, unlike the code, which takes that of all) is brought to
    the standard deviation ``embedding_scale`` (0: left as it is). A transformer does, too: there
    the scale is in units of the deviation that its parameters start with; a table of its own width
    is taken as it is. ``"projected"`` starts from the same table, and trains the projection from
    the teacher's as well as the rows.
    Table 7 has others. ``"pca"`` is the SVD less the mean row; ``"ppa"`` that without the first
    ``removed_directions`` before and after (0: a hundredth of the width). ``"full"`` takes the
    table whole, whatever ``embed`` is. All of these read the fine-tuned teacher's or, by
    ``embedding_source``, its checkpoint's. ``"vectors"`` are those of a text file, ``vectors``, as
    fastText and GloVe write them, in which pieces are looked up as words. ``"random"`` is neither.
    With ``freeze_embedding`` the table stays as it starts: no stage trains it.

    ``checkpoint`` is what the student starts from instead. A Hugging Face encoder of BERT's kind
    (folder, or hub name and ``revision``) brings its sizes (0: its own; fewer ``layers``: its
    lowest), its table and its tokenizer. A run or student folder of ours, perhaps of another task,
    gives the parameters that fit, the head where the tags are the same, and the rows of its pieces.
    Another ``embedding`` than ``"svd"`` takes the place of its table: ``"pca"`` with the teacher's
    tokenizer is what the third version of the code does for mBERT.

    ``align``: of a transformer ``one`` layer, the last, imitates the teacher, or all of them and
    the embeddings imitate the ``top`` layers, each by a projection of its own.

    The tokenizer is the teacher's, cut to the pieces of train and transfer text. ``vocab_size``
    keeps only the most frequent of them; ``tokenizer`` (folder, vocabulary file or hub name) is
    another one, cut likewise (``teacher``: the teacher's, though the checkpoint has its own). Then
    words are cut otherwise than the teacher cuts them, and what it says is read at words: of their
    first piece, or the mean over all (``pool``).

    Of a teacher whose ``codec`` is PCA it imitates the ``"states"``, restored, or the
    ``"coordinates"`` themselves. Then its projection is only as wide as they are many. For a linear
    projection that is the same objective up to a constant and a factor; for ``gelu`` it is another.

    A whole text is classified by the last state of each direction, or by the maximum over its
    pieces: ``pooling``.
    """

    embed: int = 50
    hidden: int = 200
    projection: Literal["gelu", "linear"] = "gelu"
    head_on: Literal["projection", "bilstm"] = "projection"
    dropout: float = 0.2
    embedding: Literal["svd", "projected", "random", "pca", "ppa", "full", "vectors"] = "svd"
    embedding_scale: float = 1.0
    tokenizer: str = ""
    vocab_size: int = 0
    pool: Literal["first", "mean"] = "first"
    imitate: Literal["states", "coordinates"] = "states"
    pooling: Literal["last", "max"] = "last"
    kind: Literal["bilstm", "transformer"] = "bilstm"
    layers: int = 0
    width: int = 0
    heads: int = 0
    feed_forward: int = 0
    checkpoint: str = ""
    revision: str = ""
    align: Literal["one", "top"] = "one"
    embedding_source: Literal["fine-tuned", "pretrained"] = "fine-tuned"
    removed_directions: int = 0
    vectors: str = ""
    freeze_embedding: bool = False

    @property
    def depth(self) -> int:
        """Layers of a transformer, which a checkpoint may have to tell.

        Raises:
            ValueError: if nothing tells, or the checkpoint is none of a transformer.
        """
        found = self.layers
        if self.checkpoint and not found:
            found = hub.depth(self.checkpoint, self.revision or None)
        if found < 1:
            raise ValueError(
                f"student.layers is {found}: give a transformer layers, width and heads, take one "
                "with --student l6-h384, or start from a checkpoint"
            )
        return found

    @property
    def table_width(self) -> tuple[str, int]:
        """(field, value) of the width of its embedding."""
        name = "embed" if self.kind == "bilstm" else "width"
        return name, getattr(self, name)

    @property
    def groups(self) -> tuple[str, ...]:
        """Patterns of its parameters from the top down, as far as they are known without data."""
        if self.kind == "bilstm":
            return ("head", "projection", "bilstm", "embed")
        layers = (f"layer_{number}" for number in range(self.depth, 0, -1))
        return ("head", "projection", *layers, "embed")

    @property
    def states_only(self) -> tuple[str, ...]:
        """Those of its groups that the imitated states pass through, and the logits do not."""
        reads = self.kind == "bilstm" and self.head_on == "projection"
        return () if reads else ("projection",)

    def trained(self, groups: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the student's ``groups`` that stages train.

        Raises:
            ValueError: for choices that contradict each other.
        """
        if self.checkpoint and self.embedding in ("full", "projected"):
            raise ValueError(
                f"student.embedding is {self.embedding}, but student.checkpoint brings a table of "
                "its own width: leave it out, or take pca for the teacher's"
            )
        if self.checkpoint and self.embedding != "svd" and not self.table_width[1]:
            raise ValueError(
                f"student.{self.table_width[0]} is 0, and student.embedding {self.embedding} has "
                "to know it: give that of student.checkpoint"
            )
        if self.kind == "transformer":
            self._refuse_bilstms()
        if bool(self.vectors) != (self.embedding == "vectors"):
            raise ValueError(
                f"student.embedding is {self.embedding!r} and student.vectors {self.vectors!r}: "
                "expected a file together with 'vectors', and none otherwise"
            )
        name, width = self.table_width
        if self.embedding == "ppa" and not 0 <= self.removed_directions < width:
            raise ValueError(
                f"student.removed_directions is {self.removed_directions}: expected less than "
                f"student.{name}, {width}, or 0 for a hundredth of the width"
            )
        if not self.freeze_embedding:
            return groups
        if self.embedding == "projected":
            raise ValueError(
                "student.embedding is projected, which trains the projection, and "
                "student.freeze_embedding is set: take svd, the same table, to keep it"
            )
        return tuple(group for group in groups if group != "embed")

    def _refuse_bilstms(self) -> None:
        """Refuse what a transformer, which reads its own last state at each piece, hasn't."""
        for name, usual in (("projection", "gelu"), ("head_on", "projection"), ("pooling", "last")):
            if (given := getattr(self, name)) != usual:
                raise ValueError(
                    f"student.{name} is {given}, which is a choice of a BiLSTM's: leave it out"
                )


def transformer(layers: int, width: int, heads: int, feed_forward: int) -> StudentConfig:
    """A transformer student of these sizes."""
    return StudentConfig(
        kind="transformer", layers=layers, width=width, heads=heads, feed_forward=feed_forward,
        dropout=0.1,
    )  # fmt: skip


STUDENTS: dict[str, StudentConfig] = {
    "tiny": StudentConfig(embed=50, hidden=200),
    "small": StudentConfig(embed=100, hidden=200),
    "base": StudentConfig(embed=300, hidden=600),
    "l6-h256": transformer(6, 256, 8, 1024),
    "l6-h384": transformer(6, 384, 12, 1536),
    "l12-h384": transformer(12, 384, 12, 1536),
}
"""Sizes of the paper: 35× compression; the English runs of ours; its best student; and those of the
three published checkpoints of XtremeDistilTransformers."""


@dataclass(frozen=True)
class RunConfig:
    """How a run is carried out. ``temperature`` evens out the languages (1: as they are).

    Each batch takes as many rows from each of ``shards`` logical shards, so any number of devices
    that divides it sees the same batches: set it to the largest number that you will ever use.
    ``out`` is a folder, or ``gs://bucket/prefix`` or ``s3://…`` (see ``storage``).
    ``placement``: text and teacher cache stay on the devices, ``resident``, or are ``streamed``
    there from the host; ``auto`` takes the first where they fill at most half of an accelerator's
    memory. The batches are the same. ``decoding`` is how teacher and student turn logits into tags:
    see ``labels.Decoding``. The last ``keep_checkpoints`` stay, of those saved at the first
    evaluation after each ``save_every_s`` seconds. Of several processes one that is silent for
    ``heartbeat_s`` seconds counts as dead. ``stop_after_s`` seconds after its start a run that is
    training saves where it is and ends, as after SIGTERM (0: never); the same command goes on.
    """

    out: str = "runs"
    seed: int = 0
    token_budget: int = 4096
    buckets: int = 6
    shards: int = 16
    steps_per_call: int = 16
    temperature: float = 1.0
    held_out: int = 1000
    decoding: Decoding = "iob2"
    precision: Precision = "auto"
    placement: Placement = "auto"
    save_every_s: float = 60.0
    keep_checkpoints: int = 2
    heartbeat_s: int = 100
    latency: bool = True
    stop_after_s: float = 0.0


def student_config(name: str) -> StudentConfig:
    """A student by name.

    Raises:
        ValueError: with the nearest name.
    """
    if name not in STUDENTS:
        near = difflib.get_close_matches(name.lower(), STUDENTS, n=1, cutoff=0.0)
        raise ValueError(f"unknown student {name!r}: did you mean {near[0]}? {', '.join(STUDENTS)}")
    return STUDENTS[name]
