"""What a teacher says, read at the words of a student that cuts them otherwise."""

import dataclasses
from collections.abc import Sequence

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.teacher.toys import LAYERS, build_toy
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.encode import EncodedStore, encode
from xdistil_jax.data.tokenizer import Tokenizer, train_tokenizer
from xdistil_jax.distill.feed import collate
from xdistil_jax.distill.losses import LOSSES
from xdistil_jax.teacher.anchor import anchor
from xdistil_jax.teacher.manifest import CacheSettings
from xdistil_jax.types import EncoderOutput

LINES = [
    "Anna fährt im Sommer nach Köln , Hannover und Koblenz",
    "Köln",
    "Hannover liegt weit weg von Köln am Rhein und Anna auch nicht nahe bei Koblenz",
    "im Sommer",
]
SENTENCES = [Sentence(tuple(line.split()), None, "de") for line in LINES]
COARSE, FINE = train_tokenizer(SENTENCES * 3, 60), train_tokenizer(SENTENCES * 3, 40)
LENGTH = 12
SETTINGS = CacheSettings(teacher="t", tokenizer="p", layers=LAYERS, max_length=LENGTH)


def stored(tokenizer: Tokenizer, folder, sentences: Sequence[Sentence] = SENTENCES, length=LENGTH):
    return encode(sentences, tokenizer, None, max_length=length, folder=folder)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """Of longer text no more sentences than these are looked at together."""
    monkeypatch.setattr("xdistil_jax.teacher.anchor._CHUNK", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("anchor")


@pytest.fixture(scope="module")
def theirs(folder):
    return stored(COARSE, folder)


@pytest.fixture(scope="module")
def cache(folder, theirs):
    return build_toy(folder / "cache", theirs, settings=SETTINGS)


def numbers(streamed) -> dict[str, np.ndarray]:
    arrays = {**streamed["hidden"], "logits": streamed["logits"]}
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def heard(teacher, rows: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """What the train step would get."""
    output = teacher.lookup(teacher.arrays, teacher.stream(rows, width), None)
    return numbers({"hidden": output.hidden, "logits": output.logits})


def by_word(store: EncodedStore, teacher, *, pool: str = "first") -> dict:
    """(sentence, word) -> what a teacher bound to ``store`` says, looked up piece by piece."""
    rows = np.arange(store.rows)
    streamed = heard(teacher, rows, int(store.lengths.max()))
    found = {}
    for row in rows:
        word = store.word[store.offsets[row] : store.offsets[row + 1]]
        owned = store.owned[store.offsets[row] : store.offsets[row + 1]]
        for at in np.flatnonzero((word >= 0) & owned):
            end = at + 1
            while pool == "mean" and end < len(word) - 1 and word[end] < 0:
                end += 1
            key = int(store.sentence[row]), int(word[at])
            assert key not in found
            found[key] = {name: array[row, at:end].mean(0) for name, array in streamed.items()}
    return found


def test_with_one_tokenizer_it_is_the_cache_at_first_pieces(theirs, cache):
    rows, width = np.array([[2, -1], [0, 1]]), LENGTH
    direct = numbers(cache.stream(rows, width))
    anchored = numbers(anchor(cache, theirs, theirs).stream(rows, width))
    place = theirs.offsets[rows][..., None] + np.arange(width)
    real = (np.arange(width) < theirs.lengths[rows][..., None]) & (rows >= 0)[..., None]
    place = np.where(real, place, 0)
    first = real & (theirs.word[place] >= 0) & theirs.owned[place]
    assert 4 < first.sum() < real.sum()
    for name, array in anchored.items():
        np.testing.assert_array_equal(array[first], direct[name][first], err_msg=name)
        assert not array[~first].any()


@pytest.mark.parametrize("pool", ["first", "mean"])
@pytest.mark.parametrize("length", [8, 10, 40])
def test_every_word_gets_what_the_teacher_says_of_it(folder, theirs, cache, pool, length):
    ours = stored(FINE, folder, length=length)
    assert len(ours.tokens) != len(theirs.tokens), "they cut words differently"
    anchored = anchor(cache, theirs, ours, pool=pool)
    wanted, found = by_word(theirs, cache, pool=pool), by_word(ours, anchored)
    assert wanted.keys() == found.keys()
    assert len(wanted) == sum(len(sentence.words) for sentence in SENTENCES)
    for word, outputs in wanted.items():
        for name, array in outputs.items():
            kind = np.float16 if name == "logits" else ml_dtypes.bfloat16
            rounded = array.astype(kind).astype(np.float32)
            np.testing.assert_allclose(
                found[word][name], rounded, rtol=1e-2 if pool == "mean" else 0, err_msg=str(word)
            )


@pytest.mark.parametrize("pool", ["first", "mean"])
@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize("codec", ["int8", "pca-6", "pca-0.9"])
def test_every_word_gets_it_with_every_codec(folder, theirs, pool, codec, coordinates):
    chosen = dataclasses.replace(SETTINGS, codec=codec)
    cache = build_toy(folder / codec, theirs, settings=chosen)
    cache = dataclasses.replace(cache, coordinates=coordinates)
    anchored = anchor(cache, theirs, stored(FINE, folder, length=10), pool=pool)
    wanted, found = by_word(theirs, cache, pool=pool), by_word(anchored.store, anchored)
    assert wanted.keys() == found.keys()
    for word, outputs in wanted.items():
        for name, array in outputs.items():
            # The mean is encoded once more: a 252nd of its largest coordinate, in each of them.
            allowed = np.linalg.norm(array) * 4 / 252 if pool == "mean" else 1e-5
            error = np.linalg.norm(found[word][name] - array)
            assert error <= allowed + 0.1 * (pool == "mean"), (word, name)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=6))
def test_any_rows_in_any_order(folder, theirs, cache, rows):
    ours = stored(FINE, folder, length=40)
    anchored = anchor(cache, theirs, ours)
    whole = numbers(anchored.stream(np.arange(4), 40))
    some = numbers(anchored.stream(np.array(rows), 40))
    for name, array in some.items():
        for slot, row in enumerate(rows):
            wanted = whole[name][row] if row >= 0 else 0 * whole[name][0]
            np.testing.assert_array_equal(array[slot], wanted)


def test_a_cache_of_some_rows_is_refused(folder, theirs):
    cache = build_toy(folder / "cache", theirs, rows=np.array([0]), settings=SETTINGS)
    with pytest.raises(ValueError, match=r"wasn't asked for .* of 28 words"):
        anchor(cache, theirs, theirs)


def test_other_sentences_are_refused(folder, theirs, cache):
    ours = stored(FINE, folder, SENTENCES[:3])
    with pytest.raises(ValueError, match="don't hold the same sentences"):
        anchor(cache, theirs, ours)


def test_with_one_tokenizer_the_losses_at_first_pieces_are_the_direct_ones(theirs, cache):
    rows = np.array([[0, 1, 2, 3]])
    everyone = np.zeros(4, bool)
    student = np.random.default_rng(0).normal(size=(1, 4, LENGTH, 7)).astype(np.float32)
    losses = {}
    for name, teacher in (("direct", cache), ("anchored", anchor(cache, theirs, theirs))):
        batch = collate(theirs, rows, LENGTH, everyone, words_only=True)
        target = teacher.lookup((), teacher.stream(rows, LENGTH), batch)
        states = {layer: 0.5 * student[..., :1] + 0 * each for layer, each in target.hidden.items()}
        guess = EncoderOutput(states, student[..., : target.logits.shape[-1]])
        flat = [jax.tree.map(lambda leaf: leaf[0], each) for each in (guess, target, batch)]
        losses[name] = [float(LOSSES[loss](*flat).compute()) for loss in ("repr", "logit")]
    assert losses["anchored"] == losses["direct"]
    assert min(losses["direct"]) > 0
