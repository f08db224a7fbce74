"""F1 inside jit equals seqeval's whatever is predicted and however sentences are cut."""

from dataclasses import dataclass
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score

from tests.distill.toys import (
    STORE,
    TAGS,
    TWO,
    VOCABULARY,
    WIDTH,
    Teacher,
    make_model,
    make_params,
    make_store,
)
from xdistil_jax import labels
from xdistil_jax.data import tokenizer as tokenizer_module
from xdistil_jax.data.batches import Buckets, choose_widths
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.encode import encode
from xdistil_jax.distill.evaluate import HeldOut, dev_f1, predict, tagged_set, tags_by_sentence
from xdistil_jax.sharding import make_mesh, replicate
from xdistil_jax.types import EncoderOutput

MESH = make_mesh(jax.devices()[:1])
LENGTHS = (8, 14, 64)


@dataclass(frozen=True)
class TableSpec:
    """A model that looks every answer up: its logits are a row of a table."""

    vocab_size: int
    groups: tuple[str, ...] = ("logits", "hidden")

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return _Table(self)


class _Table(nnx.Module):
    def __init__(self, spec):
        self.logits = nnx.Param(jnp.zeros((spec.vocab_size, len(TAGS))))
        self.hidden = nnx.Param(jnp.zeros((spec.vocab_size, WIDTH)))

    def __call__(
        self, tokens, lengths, token_types=None, *, key=None, dtype=jnp.float32, rows=None
    ):
        hidden = {"layer_1": self.hidden[...][tokens]}
        return EncoderOutput(hidden, self.logits[...][tokens])


# --- F1 --------------------------------------------------------------------------------------

SIZES = (5, 1, 30, 0, 9, 12, 3, 4)
# Each word has a first piece of its own, and every third has two more.
FIRST = ["".join(pair) for pair in product("abcdefgh", repeat=2)][: sum(SIZES)]
WORDS = [first + "zz" * (number % 3 == 0) for number, first in enumerate(FIRST)]
GOLD = np.random.default_rng(5).choice(len(TAGS), len(WORDS), p=[0.4, 0.15, 0.15, 0.15, 0.15])
SPLITS = np.cumsum(SIZES)[:-1]
# "nn" has no entity, "xx" has a sentence without words.
CODES = ("de", "de", "de", "xx", "xx", "xx", "nn", "xx")
GOLD[SPLITS[5] : SPLITS[6]] = 0


def sentences(numbers):
    return [TAGS.decode(part) for part in np.split(np.asarray(numbers), SPLITS)]


@pytest.fixture(scope="module")
def tokenizer():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FIRST, "##z"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return tokenizer_module._wrap(
        tokenizer_module._wordpiece(vocabulary, source="test"), {}, "test"
    )


@pytest.fixture(scope="module")
def stores(tokenizer, tmp_path_factory):
    words = [tuple(part) for part in np.split(np.array(WORDS), SPLITS)]
    text = [Sentence(*each) for each in zip(words, sentences(GOLD), CODES, strict=True)]
    folder = tmp_path_factory.mktemp("encoded")
    return {n: encode(text, tokenizer, TAGS, max_length=n, folder=folder) for n in LENGTHS}


@pytest.fixture(scope="module")
def tagged(stores):
    found = {}
    for length, store in stores.items():
        buckets = Buckets(choose_widths(store.lengths, 2), token_budget=200)
        found[length] = tagged_set(store, buckets, TAGS, MESH, steps=3, decoding="argmax")
    return found


def oracle(tokenizer, numbers):
    """(spec, parameters) of a model that gives word n the tag ``numbers[n]``."""
    spec = TableSpec(tokenizer.vocab_size)
    table = np.zeros((spec.vocab_size, len(TAGS)), np.float32)
    table[:, 1] = 0.5  # All other pieces vote for an entity.
    for word, number in zip(WORDS, numbers, strict=True):
        pieces = tokenizer.pieces([[word]])[0][0]
        assert len(pieces) == (3 if word.endswith("z") else 1)
        table[pieces[0], number] = 1.0
    hidden = np.zeros((spec.vocab_size, WIDTH), np.float32)
    return spec, replicate({"logits": table, "hidden": hidden}, MESH)


def language_mean_by_seqeval(numbers):
    gold, found, scores = sentences(GOLD), sentences(numbers), []
    for language in sorted(set(CODES)):
        chosen = [n for n, code in enumerate(CODES) if code == language]
        truth, guess = ([list(each[n]) for n in chosen] for each in (gold, found))
        if any(labels.spans(tags) for tags in truth):
            scores.append(f1_score(truth, guess, zero_division=0))
    return np.mean(scores)


@pytest.mark.parametrize("decoding", ["argmax", "iob2"])
def test_peers_have_one_form_and_their_own_figures(decoding):
    model, params = make_model(), replicate(make_params(3), MESH)
    sets = [make_store(count, seed=count) for count in (40, 7, 23)]

    def placed(store, peers=()):
        return tagged_set(store, TWO, TAGS, MESH, steps=2, decoding=decoding, peers=peers)

    alone = [placed(store) for store in sets]
    together = [placed(store, sets) for store in sets]
    assert len({(each.gold.shape, each.sizes.shape) for each in alone}) == 3
    assert {each.gold.shape for each in together} == {alone[0].gold.shape}
    assert {each.sizes.shape for each in together} == {alone[0].sizes.shape}
    for store, one, other in zip(sets, alone, together, strict=True):
        figures = [dev_f1(model.student, "float32", params, each) for each in (one, other)]
        assert figures[0] == figures[1] > 0
        tags = [
            tags_by_sentence(predict(model.student, "float32", params, each), store, TAGS)
            for each in (one, other)
        ]
        assert tags[0] == tags[1]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_dev_f1_equals_seqeval(tokenizer, stores, tagged, seed, skill):
    random = np.random.default_rng(seed)
    guesses = random.integers(0, len(TAGS), len(WORDS))
    numbers = np.where(random.random(len(WORDS)) < skill, GOLD, guesses)
    spec, params = oracle(tokenizer, numbers)
    expected = language_mean_by_seqeval(numbers)
    for length in LENGTHS:
        found = predict(spec, "float32", params, tagged[length])
        np.testing.assert_array_equal(found, numbers)
        assert tags_by_sentence(found, stores[length], TAGS) == sentences(numbers)
        assert dev_f1(spec, "float32", params, tagged[length]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_iob2_decodes_whole_sentences_however_they_are_cut(tokenizer, stores, tagged, seed):
    spec, params = oracle(tokenizer, GOLD)
    logits = np.random.default_rng(seed).normal(size=params["logits"].shape).astype(np.float32)
    params = replicate({**params, "logits": logits}, MESH)
    first = [tokenizer.pieces([[word]])[0][0][0] for word in WORDS]
    expected = [
        TAGS.decode(TAGS.best(each, "iob2")) for each in np.split(logits[np.array(first)], SPLITS)
    ]
    for length in LENGTHS:
        viterbi = tagged[length]._replace(decoding="iob2")
        found = predict(spec, "float32", params, viterbi)
        assert tags_by_sentence(found, stores[length], TAGS) == expected
        plain = predict(spec, "float32", params, tagged[length])
        assert tags_by_sentence(plain, stores[length], TAGS) != expected


def test_perfect_and_hopeless_predictions(tokenizer, tagged):
    for numbers, expected in ((GOLD, 1.0), (np.zeros_like(GOLD), 0.0)):
        spec, params = oracle(tokenizer, numbers)
        for length in LENGTHS:
            found = dev_f1(spec, "float32", params, tagged[length])
            assert found == pytest.approx(expected, abs=1e-6)


def test_gold_does_not_depend_on_the_maximum_length(stores, tagged):
    assert stores[8].rows > stores[14].rows > stores[64].rows == len(SIZES)
    for each in tagged.values():
        np.testing.assert_array_equal(each.gold, GOLD)
        starts = np.cumsum((0, *SIZES))[:-1][np.array(SIZES) > 0]
        np.testing.assert_array_equal(np.flatnonzero(each.first), starts)
        assert each.languages == ("de", "nn", "xx")
        expected = np.repeat([each.languages.index(code) for code in CODES], SIZES)
        np.testing.assert_array_equal(each.language, expected)


def test_eight_devices_predict_the_same(tokenizer, stores):
    mesh = make_mesh(jax.devices()[:8])
    numbers = np.random.default_rng(1).integers(0, len(TAGS), len(WORDS))
    spec, params = oracle(tokenizer, numbers)
    store = stores[14]
    buckets = Buckets((14,), 200)
    everywhere = tagged_set(store, buckets, TAGS, mesh, steps=2, decoding="argmax")
    found = predict(spec, "float32", replicate(jax.tree.map(np.asarray, params), mesh), everywhere)
    np.testing.assert_array_equal(found, numbers)


# --- held-out losses -------------------------------------------------------------------------


def held_out_by_definition(params, arrays, rows):
    """Means over the pieces of ``rows``, one piece after the other."""
    states, answers = [], []
    for row in rows:
        factor = Teacher.factor(np.array(row))
        for at in range(STORE.offsets[row], STORE.offsets[row + 1]):
            piece = STORE.tokens[at]
            error = params["hidden"][piece] - arrays["hidden"][piece] * factor
            states.append(np.mean(error**2))
            if STORE.owned[at]:
                error = params["logits"][piece] - arrays["logits"][piece] * factor
                answers.append(np.mean(error**2))
    return {"repr": np.mean(states), "logit": np.mean(answers)}


@pytest.mark.parametrize("steps", [1, 4])
def test_held_out_means_equal_numpy(steps):
    random = np.random.default_rng(0)
    spec = TableSpec(VOCABULARY)
    params = {
        "logits": random.normal(size=(VOCABULARY, len(TAGS))).astype(np.float32),
        "hidden": random.normal(size=(VOCABULARY, WIDTH)).astype(np.float32),
    }
    rows = np.sort(random.choice(STORE.rows, 157, replace=False))
    model, teacher = make_model(spec=spec), Teacher()
    held = HeldOut.of(STORE, rows, TWO, teacher, model.mesh, steps=steps)
    assert {feed.batch.tokens.shape[0] for feed in held.feeds} == {steps}
    found = held.means(model, ("ce", "repr", "logit"), params, teacher.arrays)
    expected = held_out_by_definition(params, jax.tree.map(np.asarray, teacher.arrays), rows)
    assert found == pytest.approx(expected, rel=1e-5)
    only = held.means(model, ("logit",), params, teacher.arrays)
    assert only == pytest.approx({"logit": expected["logit"]}, rel=1e-5)


def test_stages_of_labels_alone_have_no_held_out_loss():
    model, teacher = make_model(), Teacher()
    held = HeldOut.of(STORE, np.arange(20), TWO, teacher, model.mesh, steps=2)
    assert held.means(model, ("ce",), make_params(), teacher.arrays) == {}
    assert HeldOut(()).means(model, ("ce",), make_params(), teacher.arrays) == {}
