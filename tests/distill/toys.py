"""A tiny student, a teacher that is a table, and random text."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xdistil_jax.data.batches import Buckets, Sampler, Source
from xdistil_jax.data.encode import EncodedStore
from xdistil_jax.distill.checkpoint import Checkpoints
from xdistil_jax.distill.evaluate import HeldOut, tagged_set
from xdistil_jax.distill.feed import Feeder
from xdistil_jax.distill.loop import StopFlag, Training
from xdistil_jax.distill.stages import Schedule, Stage, StopRule, Term
from xdistil_jax.distill.state import Model
from xdistil_jax.labels import TagSet
from xdistil_jax.models.functional import build, dropout
from xdistil_jax.sharding import make_mesh, replicate
from xdistil_jax.types import Batch, EncoderOutput

VOCABULARY, WIDTH = 50, 12
TAGS = TagSet(("LOC", "PER"))


@dataclass(frozen=True)
class ToySpec:
    """The paper's student, but each direction of its BiLSTM is one step: quick to compile."""

    vocab_size: int = VOCABULARY
    size: int = 8
    dropout: float = 0.2
    groups: tuple[str, ...] = ("head", "projection", "bilstm", "embed")

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return _Toy(self, rngs)


class _Toy(nnx.Module):
    def __init__(self, spec, rngs):
        def leaves(**shapes):
            normal = jax.random.normal
            return nnx.Dict(
                **{name: nnx.Param(normal(rngs.params(), s) / 3) for name, s in shapes.items()}
            )

        self.spec, size = spec, spec.size
        self.embed = leaves(table=(spec.vocab_size, size))
        # Both directions in one leaf, as in the BiLSTM.
        self.bilstm = leaves(kernel=(2, size, size), bias=(2, size))
        self.projection = leaves(kernel=(size, WIDTH), bias=(WIDTH,))
        self.head = leaves(kernel=(WIDTH, len(TAGS)), bias=(len(TAGS),))

    def __call__(
        self, tokens, lengths, token_types=None, *, key=None, dtype=jnp.float32, rows=None
    ):
        real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        x = dropout(self.embed["table"][...][tokens], self.spec.dropout, key)
        x = jnp.where(real[..., None], x, 0.0)
        wide = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        both = jnp.stack([wide[:, :-2], wide[:, 2:]])
        mixed = jnp.einsum("sbtd,sde->sbte", both, self.bilstm["kernel"][...])
        mixed = jnp.tanh(mixed + self.bilstm["bias"][...][:, None, None]).sum(0)
        projected = jax.nn.gelu(_dense(self.projection, x + mixed))
        return EncoderOutput({"layer_1": projected}, _dense(self.head, projected))


def _dense(layer, x):
    return x @ layer["kernel"][...] + layer["bias"][...][None, None]


SPEC = ToySpec()
GROUPS = SPEC.groups
ONE, TWO = Buckets((8,), token_budget=256), Buckets((5, 8), token_budget=160)
LANGUAGES = ("de", "xx")


def make_store(rows, seed=0, *, tagged=None, longest=8):
    """Random rows, each a sentence; the first ``tagged`` (default: all) of them carry tags."""
    random = np.random.default_rng(seed)
    tagged = rows if tagged is None else tagged
    tokens, word, labels, lengths, words = [], [], [], [], []
    for row in range(rows):
        size = int(random.integers(1, longest - 1))
        starts = np.concatenate([[True], random.random(size - 1) < 0.7])
        numbers = np.where(starts, np.cumsum(starts) - 1, -1)
        inner = random.integers(4, VOCABULARY, size)
        tags = inner % len(TAGS) if row < tagged else np.full(size, -1)
        tokens += [2, *inner.tolist(), 3]
        word += [-1, *numbers.tolist(), -1]
        labels += [-1, *np.where(starts, tags, -1).tolist(), -1]
        lengths.append(size + 2)
        words.append(int(starts.sum()))
    word = np.array(word, np.int32)
    return EncodedStore(
        tokens=np.array(tokens, np.int32),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        word=word,
        owned=word >= 0,
        labels=np.array(labels, np.int8),
        sentence=np.arange(rows, dtype=np.int32),
        language=(np.arange(rows) % len(LANGUAGES)).astype(np.int16),
        languages=LANGUAGES,
        word_counts=np.array(words, np.int32),
        max_length=longest,
        identity="toy",
    )


@dataclass(frozen=True)
class Lookup:
    """Targets of a piece are a row of a table, times a factor that travels with its row."""

    def __call__(self, arrays, streamed, batch: Batch) -> EncoderOutput:
        factor = streamed[:, None, None]
        hidden = {"layer_1": arrays["hidden"][batch.tokens] * factor}
        return EncoderOutput(hidden, arrays["logits"][batch.tokens] * factor)


class Teacher:
    """Tables of the targets; row r's are multiplied by ``factor(r)``."""

    lookup = Lookup()
    words_only = False

    def __init__(self, seed=0):
        keys = jax.random.split(jax.random.key(100 + seed))
        self.arrays = {
            "hidden": jax.random.normal(keys[0], (VOCABULARY, WIDTH)),
            "logits": 3 * jax.random.normal(keys[1], (VOCABULARY, len(TAGS))),
        }

    @staticmethod
    def factor(rows):
        return np.where(rows >= 0, 0.5 + (rows % 4) / 4, 0.0).astype(np.float32)

    def stream(self, rows, width):
        return self.factor(rows)


def make_model(devices=1, spec=SPEC, lookup=Teacher.lookup):
    return Model(spec, lookup, "float32", make_mesh(jax.devices()[:devices]))


def make_params(seed=0, spec=SPEC):
    return build(spec).init(jax.random.key(seed))


STORE = make_store(400, tagged=150)


def source(rows, store=STORE):
    return Source(rows, store.lengths[rows], np.ones(len(rows)))


def make_sampler(fraction, *, store=STORE, buckets=ONE, seed=0, stage=0):
    """Batches of the tagged rows and the others."""
    tagged = np.maximum.reduceat(store.labels, store.offsets[:-1]) >= 0
    labelled, transfer = np.flatnonzero(tagged), np.flatnonzero(~tagged)
    texts = source(labelled, store), source(transfer, store)
    return Sampler(buckets, *texts, fraction, seed, stage)


def make_feeds(model, sampler, *, steps, start=0, store=STORE):
    """The feeds of ``sampler`` from step ``start`` on, without end."""
    feeder = Feeder(store, sampler.buckets, Teacher(), model.mesh, steps)
    for call in sampler.calls(start, steps):
        yield feeder.feed(call, sampler.role(call.bucket))[0]


def equal(left, right):
    """Are two trees the same bit for bit?"""
    mine, its = jax.tree.flatten(left), jax.tree.flatten(right)
    return mine[1] == its[1] and all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(map(_plain, mine[0]), map(_plain, its[0]), strict=True)
    )


def _plain(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


# --- a run -----------------------------------------------------------------------------------

FAST = Schedule(peak=0.02, warmup=0.1, weight_decay=0.01)
STAGES = (
    Stage("repr", (Term("repr"),), GROUPS[1:], 0.0, FAST, StopRule(1.4, evaluations=2)),
    Stage(
        "joint", (Term("ce", 2.0), Term("logit")), GROUPS[:2], 0.5, FAST,
        StopRule(0.7, evaluations=3, patience=9),
    ),
    # Another head, and the moments of all else: whatever a run is, it goes on with both.
    Stage(
        "ce", (Term("ce"),), GROUPS[:3], 1.0, FAST, StopRule(4, patience=2), carry=True,
        fresh=("head",),
    ),
)  # fmt: skip


class Records:
    """A writer that keeps all; ``after`` is called after each progress record with their number."""

    def __init__(self, written=(), after=lambda count: None):
        self.written, self.shown, self.after = list(written), [], after

    def write(self, record):
        self.written.append(dict(record))

    def progress(self, record):
        self.shown.append(dict(record))
        self.after(len(self.shown))


def make_training(checkpoints=None, writer=None, stop=None, *, devices=1, **options):
    """A run on the random text."""
    model, teacher, steps = make_model(devices), Teacher(), 2
    transfer = make_sampler(0.5).transfer.rows
    values = {
        "labelled": make_sampler(0.5).labelled,
        "transfer": source(transfer[40:]),
        "buckets": ONE,
        "dev": tagged_set(
            make_store(60, seed=1), ONE, TAGS, model.mesh, steps=steps, decoding="argmax"
        ),
        "held_out": HeldOut.of(STORE, transfer[:40], ONE, teacher, model.mesh, steps=steps),
        "seed": 11,
    }
    return Training(
        model,
        STORE,
        teacher=teacher,
        arrays=replicate(teacher.arrays, model.mesh),
        steps_per_call=steps,
        checkpoints=checkpoints or Checkpoints(None),
        writer=writer or Records(),
        stop=stop or StopFlag(),
        **values | options,
    )
