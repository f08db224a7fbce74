"""Texts to classify: one row each, framed and cut as the tokenizers library does, one label."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from xdistil_jax.data.encode import encode, encode_in_memory, load_store, stitch
from xdistil_jax.data.readers import PAIR, Sentence
from xdistil_jax.data.tokenizer import train_tokenizer
from xdistil_jax.labels import UNLABELLED, ClassSet, TagSet
from xdistil_jax.text import words_of

CLASSES = ClassSet(("no", "yes"))
SEEN = words_of("the quick brown fox jumps over lazy dogs, 3.5 naïve Über-Mensch")
TOKENIZER = train_tokenizer([Sentence(SEEN, None, "en")] * 3, 90)
WORDS = st.lists(st.sampled_from([*SEEN, "unseen", "東", "thequick"]), min_size=1, max_size=14)


@st.composite
def texts(draw):
    words = draw(WORDS)
    if draw(st.booleans()):
        words = [*words, PAIR, *draw(WORDS)]
    label = draw(st.none() | st.sampled_from(CLASSES.classes).map(lambda name: (name,)))
    return Sentence(tuple(words), label, draw(st.sampled_from(["de", "en"])))


def reference(max_length):
    """Text or pair -> ids, by the tokenizers library alone."""
    backend = tokenizers.Tokenizer.from_str(json.dumps(json.loads(TOKENIZER.backend.to_str())))
    special = [("[CLS]", TOKENIZER.cls_id), ("[SEP]", TOKENIZER.sep_id)]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special
    )
    backend.enable_truncation(max_length, strategy="longest_first")

    def ids(words):
        if PAIR not in words:
            return backend.encode(list(words), is_pretokenized=True).ids
        at = words.index(PAIR)
        both = list(words[:at]), list(words[at + 1 :])
        return backend.encode(*both, is_pretokenized=True).ids

    return ids


@settings(deadline=None)
@given(st.lists(texts(), min_size=1, max_size=6), st.integers(8, 40))
def test_rows_equal_those_of_the_tokenizers_library(given_texts, max_length):
    store = encode_in_memory(given_texts, TOKENIZER, CLASSES, max_length=max_length)
    ids, whole = reference(max_length), reference(10_000)
    assert store.rows == len(given_texts)
    for row, text in enumerate(given_texts):
        cut = slice(*store.offsets[row : row + 2])
        assert store.tokens[cut].tolist() == ids(text.words)
        assert store.word[cut].tolist() == [0, *[-1] * (store.lengths[row] - 1)]
        assert store.owned[cut].tolist() == [True, *[False] * (store.lengths[row] - 1)]
    assert store.lengths.max() <= max_length
    assert store.word_counts.tolist() == [1] * len(given_texts)
    cut = sum(len(whole(text.words)) > max_length for text in given_texts)
    assert _encoded(given_texts, max_length).shortened == cut


_FOLDERS = []


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    _FOLDERS.append(tmp_path_factory.mktemp("encoded"))


def _encoded(given_texts, max_length=16, tagset=CLASSES):
    return encode(given_texts, TOKENIZER, tagset, max_length=max_length, folder=_FOLDERS[-1])


@settings(deadline=None)
@given(st.lists(texts(), min_size=1, max_size=6))
def test_only_the_first_piece_has_a_label(given_texts):
    store = _encoded(given_texts)
    wanted = [
        UNLABELLED if text.tags is None else CLASSES.index[text.tags[0]] for text in given_texts
    ]
    assert store.labels[store.offsets[:-1]].tolist() == wanted
    inner = np.ones(len(store.tokens), bool)
    inner[store.offsets[:-1]] = False
    assert (store.labels[inner] == UNLABELLED).all()
    said = np.arange(len(store.tokens), dtype=float)
    assert [each.tolist() for each in stitch(store, said)] == [[at] for at in store.offsets[:-1]]
    languages = [store.languages[number] for number in store.language]
    assert languages == [text.language for text in given_texts]


def test_a_store_is_found_again_and_is_not_that_of_tags():
    given_texts = [Sentence(SEEN, ("yes",), "en"), Sentence(("fox",), ("no",), "en")]
    store = _encoded(given_texts, max_length=8)
    assert store.shortened == load_store(_FOLDERS[-1] / store.identity).shortened == 1
    turned = _encoded(given_texts, max_length=8, tagset=ClassSet(("yes", "no")))
    assert turned.identity != store.identity
    bare = [text._replace(tags=None) for text in given_texts]
    tagged = _encoded(bare, 8, TagSet(())), _encoded(bare, 8, None)
    assert len({each.identity for each in (*tagged, _encoded(bare, 8))}) == 3
    assert tagged[0].rows > 2


@pytest.mark.parametrize("label", [("maybe",), ("no", "yes"), ()])
def test_a_wrong_class_is_named(label):
    wrong = [Sentence(("fox",), ("no",), "en"), Sentence(("dogs",), label, "en")]
    with pytest.raises(ValueError, match=r"text 1 has the classes .* expected one of no, yes"):
        _encoded(wrong)


def test_more_classes_than_fit_are_refused():
    many = ClassSet(tuple(f"c{number}" for number in range(129)))
    with pytest.raises(ValueError, match="129 classes: a store holds at most 128"):
        _encoded([Sentence(("fox",), ("c1",), "en")], tagset=many)


def test_a_tokenizer_learns_nothing_of_what_parts_a_pair():
    paired = [Sentence(("fox", PAIR, "dogs"), None, "en")] * 3
    apart = [Sentence(("fox", "dogs"), None, "en")] * 3
    assert train_tokenizer(paired, 40).fingerprint == train_tokenizer(apart, 40).fingerprint
