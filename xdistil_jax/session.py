"""What the steps of one run share, and a model together with all that it takes to tag text."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from xdistil_jax import hosts, storage
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.encode import EncodedStore, encode
from xdistil_jax.data.tokenizer import Tokenizer
from xdistil_jax.distill.loop import StopFlag, Writer
from xdistil_jax.experiment import Experiment
from xdistil_jax.labels import Labels
from xdistil_jax.models.functional import Spec
from xdistil_jax.sharding import make_mesh
from xdistil_jax.teacher.outputs import Outputs
from xdistil_jax.types import Params

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A teacher or a student, ready to tag; ``folder`` is where its scores are kept.

    ``layers`` are those that students of this teacher imitate, from the top down, ``codec`` is how
    they are cached, and ``cache`` the id of the one cache that will do ("": any). ``mesh`` is the
    one over which its parameters are split (None: they are whole on every device).
    """

    spec: Spec
    params: Params
    tokenizer: Tokenizer
    tagset: Labels
    max_length: int
    fingerprint: str = ""
    folder: Path | None = None
    layers: tuple[str, ...] = ()
    codec: str = "bf16"
    mesh: Mesh | None = None
    cache: str = ""


@dataclass(frozen=True)
class Given:
    """A teacher of which only outputs are there; rows are cut to ``max_length`` pieces."""

    outputs: Outputs
    max_length: int
    fingerprint: str


@dataclass(frozen=True)
class Ensemble:
    """Several teachers as one; the first is the one whose words and pieces the student gets.

    ``weights`` sum to 1 over the members: those of a language, or those of ``""``.
    """

    members: tuple[Trained | Given, ...]
    weights: dict[str, tuple[float, ...]]
    fingerprint: str

    folder: None = None

    def weights_of(self, language: str) -> tuple[float, ...]:
        """One for each member."""
        return self.weights.get(language, self.weights[""])

    @property
    def lead(self) -> Trained | Given:
        """The first member."""
        return self.members[0]

    @property
    def params(self) -> tuple[Params, ...]:
        """Of the members that are models."""
        return tuple(member.params for member in self.members if isinstance(member, Trained))


@dataclass(frozen=True)
class ByLanguage:
    """Students that have a language each; a sentence is tagged by that of its language."""

    members: dict[str, Trained]
    folder: Path | None = None

    @property
    def params(self) -> tuple[Params, ...]:
        """Of all members."""
        return tuple(member.params for member in self.members.values())


@dataclass(frozen=True)
class Session:
    """One run under way: where, on what, in which precision, and whom to tell."""

    experiment: Experiment
    mesh: Mesh
    dtype: str
    say: Say
    stop: StopFlag
    progress: Writer | None
    only: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        experiment: Experiment,
        *,
        say: Say = lambda message: None,
        progress: Writer | None = None,
        stop: StopFlag | None = None,
        only: str | Path | None = None,
    ) -> "Session":
        """A session on all devices; bf16 compute on accelerators unless told otherwise.

        A run folder in a bucket is exchanged for its mirror.

        Raises:
            StorageError: if that bucket can't be used.
        """
        if storage.is_url(out := experiment.run.out):
            run_ = replace(experiment.run, out=str(storage.start(out, writes=True)))
            experiment = replace(experiment, run=run_)
            say(f"{out}: worked on in {run_.out}")
        precision: str = experiment.run.precision
        if precision == "auto":
            precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        stop = stop or StopFlag()
        if experiment.run.stop_after_s:
            stop.deadline = time.monotonic() + experiment.run.stop_after_s
        mesh = make_mesh()
        hosts.acquaint(mesh)
        return cls(
            experiment,
            mesh,
            precision,
            say,
            stop,
            progress,
            only and Path(only),
        )

    def refuse_other(self, folder: Path) -> None:
        """Hold a session that is about one folder to that folder.

        Raises:
            ValueError: if ``folder`` is another one.
        """
        if self.only is not None and folder.resolve() != self.only.resolve():
            raise ValueError(
                f"{self.only} can't be found again: its data or settings have changed since, and "
                f"would now give {folder}. Run the experiment anew, or put the data back"
            )

    def look_up(self, folder: Path, part: str) -> None:
        """Bring the files of ``folder`` and its finished ``part`` up to date with their bucket."""
        with hosts.primary_first():
            if hosts.is_primary():
                storage.refresh(folder)
            storage.settle(folder / part)

    def encode(
        self,
        sentences: Sequence[Sentence],
        tokenizer: Tokenizer,
        tagset: Labels | None,
        *,
        max_length: int,
    ) -> EncodedStore:
        """The store of ``sentences``, under its hash and shared by all experiments.

        That texts to classify had to be cut is said, and noted for the report.
        """
        with hosts.primary_first():
            store = encode(sentences, tokenizer, tagset, max_length=max_length, folder=self.encoded)
        if store.shortened:
            note = f"{store.shortened:,} of {store.rows:,} texts have over {max_length} pieces"
            note += ", and were cut (teacher.max_length)."
            if note not in self.notes:
                self.say(note)
                self.notes.append(note)
        return store

    @property
    def encoded(self) -> Path:
        """Encoded text, by its hash, shared by all experiments; and, while it is used, text."""
        return Path(self.experiment.run.out) / "encoded"

    @property
    def caches(self) -> Path:
        """Teacher caches, by their hash, shared by all experiments."""
        return Path(self.experiment.run.out) / "cache"

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the block's seconds to ``step``."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - start
