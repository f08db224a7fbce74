"""Packed rows: every sentence stands in one of them, whole, and little is padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax.data import packing
from xdistil_jax.data.encode import encode, encode_in_memory
from xdistil_jax.data.packing import pack
from xdistil_jax.data.readers import Sentence
from xdistil_jax.data.tokenizer import train_tokenizer

WORDS = ("Ulm", "Anna", "wohnt", "in", "Donaudampfschiff", "und")
TOKENIZER = train_tokenizer([Sentence(WORDS, None, "de")] * 3, 60)
TEXT = st.lists(
    st.builds(
        Sentence,
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=14).map(tuple),
        st.none(),
        st.sampled_from(["de", "ru", "yo"]),
    ),
    min_size=1,
    max_size=30,
)


def encoded(sentences, length):
    return encode_in_memory(sentences, TOKENIZER, max_length=length)


def row(store, number):
    return store.tokens[store.offsets[number] : store.offsets[number + 1]].tolist()


def sentences_of(store):
    """(language, pieces) of every sentence between two special pieces, in order."""
    found = []
    for number in range(store.rows):
        pieces = row(store, number)
        assert pieces[0] == TOKENIZER.cls_id
        assert pieces[-1] == TOKENIZER.sep_id
        assert TOKENIZER.cls_id not in pieces[1:]
        part = []
        for piece in pieces[1:]:
            if piece == TOKENIZER.sep_id:
                assert part
                found.append((int(store.language[number]), tuple(part)))
                part = []
            else:
                part.append(piece)
    return found


@settings(deadline=None, max_examples=200)
@given(TEXT, st.integers(8, 40))
def test_no_sentence_is_lost_or_cut_unless_longer_than_a_row(text, length):
    store = encoded(text, length)
    packed = pack(store)
    assert packed.lengths.max() <= length
    found = sentences_of(packed)
    wanted = {code: [] for code in range(len(store.languages))}
    got = {code: [] for code in range(len(store.languages))}
    for sentence in text:
        pieces = [p for word in TOKENIZER.pieces([sentence.words])[0] for p in word]
        wanted[store.languages.index(sentence.language)].append(pieces)
    for code, pieces in found:
        got[code].append(list(pieces))
    for code, own in wanted.items():
        for pieces in own:
            # Whole, or windows that are it again when they are put end to end.
            joined = got[code].pop(0)
            while len(joined) < len(pieces):
                assert len(pieces) > length - 2
                joined = joined + got[code].pop(0)
            assert joined == pieces
        assert not got[code]


@settings(deadline=None, max_examples=100)
@given(TEXT, st.integers(8, 40))
def test_words_are_numbered_within_a_row(text, length):
    packed = pack(encoded(text, length))
    total = sum(len(sentence.words) for sentence in text)
    assert packed.word_counts.sum() == total == (packed.word >= 0).sum()
    assert (packed.owned == (packed.word >= 0)).all()
    for number in range(packed.rows):
        word = packed.word[packed.offsets[number] : packed.offsets[number + 1]]
        assert word[word >= 0].tolist() == list(range(packed.word_counts[number]))
        assert word[0] == -1
    assert (packed.labels == -1).all()


def test_a_row_is_left_only_where_the_next_sentence_does_not_fit():
    text = [Sentence(WORDS[:4], None, "de")] * 40 + [Sentence(WORDS[1:3], None, "yo")] * 40
    store = encoded(text, 32)
    packed = pack(store)
    for number in range(packed.rows - 1):
        if packed.language[number] == packed.language[number + 1]:
            following = row(packed, number + 1).index(TOKENIZER.sep_id)
            assert packed.lengths[number] + following > 32
    padding = 1 - packed.lengths.sum() / (packed.rows * 32)
    assert padding < 0.2 < 1 - store.lengths.sum() / (store.rows * 32)


def test_chunks_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    text = [
        Sentence(tuple(random.choice(WORDS, size).tolist()), None, ("de", "yo")[size % 2])
        for size in random.integers(1, 14, 100)
    ]
    store = encoded(text, 16)
    whole = pack(store)
    monkeypatch.setattr(packing, "_CHUNK", 3)
    small = pack(store)
    for name in ("tokens", "offsets", "word", "owned", "sentence", "language", "word_counts"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(small, name), err_msg=name)
        assert (
            getattr(whole, name).dtype == getattr(small, name).dtype == getattr(store, name).dtype
        )
    assert whole.identity == small.identity != store.identity


@pytest.mark.parametrize("overlap", [0, 4])
def test_stores_on_disk_are_packed_alike(tmp_path, overlap):
    text = [Sentence(WORDS * 3, None, "de"), Sentence(WORDS, None, "de")]
    store = encode(text, TOKENIZER, None, max_length=16, folder=tmp_path, overlap=overlap)
    words = [piece for _, part in sentences_of(pack(store, folder=tmp_path)) for piece in part]
    wanted = [
        p for sentence in text for word in TOKENIZER.pieces([sentence.words])[0] for p in word
    ]
    assert words == wanted


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="no sentence has a word"):
        pack(encoded([Sentence((), None, "de")], 16))
