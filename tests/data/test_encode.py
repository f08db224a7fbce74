"""Every word is owned once, nothing depends on the maximum length, damage is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax.data import tokenizer as tokenizer_module
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.cutting import cut_tokenizer
from xdistil_jax.data.encode import (
    StoreError,
    encode,
    encode_in_memory,
    load_store,
    piece_counts,
    stitch,
)
from xdistil_jax.data.synthetic import synthesise
from xdistil_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from xdistil_jax.labels import TagSet, spans

DATA = Path(__file__).parents[2] / "../shared/data"
TAGS = TagSet(("LOC", "PER"))
ARRAYS = ("tokens", "offsets", "word", "owned", "labels", "sentence", "language", "word_counts")

words = st.text("abc", min_size=1, max_size=20) | st.sampled_from(["\x00", "", "a"])


@st.composite
def sentences(draw):
    found = draw(st.lists(words, max_size=20))
    tags = st.lists(st.sampled_from(TAGS.tags), min_size=len(found), max_size=len(found))
    tagged = draw(st.none() | tags.map(tuple))
    return Sentence(tuple(found), tagged, draw(st.sampled_from(["de", "xx"])))


@pytest.fixture(scope="module")
def tokenizer():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abc", "##a", "##b", "##c", "##bca", "ab"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return tokenizer_module._wrap(tokenizer_module._wordpiece(vocab, source="test"), {}, "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("encoded")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """What is longer than memory comes in blocks."""
    monkeypatch.setattr("xdistil_jax.data.encode._BLOCK", 7)


@pytest.fixture
def corpus():
    return [
        Sentence(("ab", "a" * 9, "bca"), ("B-PER", "I-PER", "O"), "de"),
        Sentence((), None, "xx"),
        Sentence(("c",) * 30, ("O", "B-LOC") * 15, "xx"),
        Sentence(("abc", "cab"), None, "de"),
    ]


def rows_of(store):
    """For each row: its sentence, its pieces, and {word: (position, owned, label)}."""
    for row in range(store.rows):
        cut = slice(store.offsets[row], store.offsets[row + 1])
        found = {
            int(word): (position, bool(owned), int(label))
            for position, (word, owned, label) in enumerate(
                zip(store.word[cut], store.owned[cut], store.labels[cut], strict=True)
            )
            if word >= 0
        }
        yield int(store.sentence[row]), store.tokens[cut].tolist(), found


def owners_by_definition(store, sizes):
    """(sentence, word) -> row in which the word stands farthest from an edge that cuts."""
    best = {}
    for row, (sentence, tokens, found) in enumerate(rows_of(store)):
        for word, (position, _, _) in found.items():
            left, right = position - 1, len(tokens) - 1 - position - sizes[sentence][word]
            first, last = min(found) == 0, max(found) == store.word_counts[sentence] - 1
            context = min(10**6 if first else left, 10**6 if last else right)
            if context > best.get((sentence, word), (-1, 0))[0]:
                best[sentence, word] = context, row
    return {key: row for key, (_, row) in best.items()}


def test_words_begin_where_the_growing_prefix_of_the_papers_code_says(folder):
    """It cuts the first n words anew for each n, and takes the pieces that are more."""
    text = synthesise(languages=("de", "ru", "vi"), seed=0).train
    tokenizer = train_tokenizer(text, 400)
    store = encode(text, tokenizer, None, max_length=256, folder=folder)
    assert store.rows == len(text), "no sentence is too long for a row"
    for (number, tokens, found), sentence in zip(rows_of(store), text, strict=True):
        assert sentence is text[number]
        prefixes = [" ".join(sentence.words[:count]) for count in range(len(sentence.words) + 1)]
        cut = [tokenizer.backend.encode(each, add_special_tokens=False).ids for each in prefixes]
        assert tokens[1:-1] == cut[-1]
        begins = [1 + len(ids) for ids in cut[:-1]]
        assert [position for position, _, _ in found.values()] == begins


@settings(deadline=None)
@given(data=st.data(), corpus=st.lists(sentences(), max_size=6), max_length=st.integers(8, 70))
def test_rows_hold_every_word_and_own_it_once(tokenizer, folder, data, corpus, max_length):
    overlap = data.draw(st.none() | st.integers(0, max_length - 3))
    store = encode(corpus, tokenizer, TAGS, max_length=max_length, folder=folder, overlap=overlap)
    room = max_length - 2
    pieces = [
        [word[:room] for word in sentence]
        for sentence in tokenizer.pieces([sentence.words for sentence in corpus])
    ]
    sizes = [[len(word) for word in sentence] for sentence in pieces]
    assert store.word_counts.tolist() == [len(sentence.words) for sentence in corpus]
    assert store.offsets[0] == 0
    assert store.offsets[-1] == len(store.tokens) == len(store.word) == len(store.owned)
    assert (store.lengths >= 2).all()
    assert (store.lengths <= max_length).all()
    assert (np.diff(store.sentence) >= 0).all()
    owned = []
    for row, (sentence, tokens, found) in enumerate(rows_of(store)):
        source = corpus[sentence]
        assert (tokens[0], tokens[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
        numbers = sorted(found)
        assert numbers == list(range(numbers[0], numbers[-1] + 1)) if numbers else not source.words
        assert tokens[1:-1] == [piece for word in numbers for piece in pieces[sentence][word]]
        assert store.languages[store.language[row]] == source.language
        position = 1
        for word in numbers:
            place, is_owned, label = found[word]
            assert place == position
            position += sizes[sentence][word]
            tagged = is_owned and source.tags is not None
            assert label == (TAGS.index[source.tags[word]] if tagged else -1)
            owned += [((sentence, word), row)] * is_owned
    assert len(owned) == len(dict(owned)) == sum(len(sentence.words) for sentence in corpus)
    assert dict(owned) == owners_by_definition(store, sizes)
    assert set(store.sentence.tolist()) == set(range(len(corpus)))
    fits = [sum(sizes[number]) <= room for number in range(len(corpus))]
    counts = np.bincount(store.sentence, minlength=len(corpus))
    assert [count == 1 for count in counts] == fits
    assert not store.owned[store.word < 0].any()


# Writing and syncing stores takes as long as the disk wants.
@settings(deadline=None, max_examples=40)
@given(corpus=st.lists(sentences(), max_size=5))
def test_gold_entities_do_not_depend_on_the_maximum_length(tokenizer, folder, corpus):
    for max_length in (8, 9, 31, 500):
        store = encode(corpus, tokenizer, TAGS, max_length=max_length, folder=folder)
        found = stitch(store, store.labels)
        assert len(found) == len(corpus)
        for numbers, sentence in zip(found, corpus, strict=True):
            if sentence.tags is not None:
                assert spans(TAGS.decode(numbers.tolist())) == spans(sentence.tags)
            assert len(numbers) == len(sentence.words)


def test_windows_overlap_and_are_few(tokenizer, folder):
    one = [Sentence(("c",) * 100, None, "xx")]
    store = encode(one, tokenizer, None, max_length=22, folder=folder, overlap=8)
    starts = [min(found) for _, _, found in rows_of(store)]
    assert starts == [0, 12, 24, 36, 48, 60, 72, 80]
    owned = [[word for word in found if found[word][1]] for _, _, found in rows_of(store)]
    assert owned[:2] == [list(range(16)), list(range(16, 28))]


def test_chunks_leave_no_trace(tokenizer, tmp_path, corpus, monkeypatch):
    whole = encode(corpus * 5, tokenizer, TAGS, max_length=12, folder=tmp_path / "a")
    monkeypatch.setattr("xdistil_jax.data.encode._CHUNK", 3)
    parts = encode(corpus * 5, tokenizer, TAGS, max_length=12, folder=tmp_path / "b")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
        assert getattr(parts, name).dtype == getattr(whole, name).dtype
    assert parts.languages == whole.languages == ("de", "xx")


def test_store_is_found_again_and_mapped(tokenizer, tmp_path, corpus, monkeypatch):
    calls = []
    original = Tokenizer.word_pieces

    def count(self, words):
        calls.append(len(words))
        return original(self, words)

    monkeypatch.setattr(Tokenizer, "word_pieces", count)
    first = encode(corpus, tokenizer, TAGS, max_length=12, folder=tmp_path)
    second = encode(list(corpus), tokenizer, TAGS, max_length=12, folder=tmp_path)
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == [first.identity] == [second.identity]
    assert isinstance(second.tokens, np.memmap)
    assert not second.tokens.flags.writeable
    np.testing.assert_array_equal(load_store(tmp_path / first.identity).tokens, first.tokens)


def test_identity_covers_all_that_was_put_in(tokenizer, tmp_path, corpus):
    other, _ = cut_tokenizer(tokenizer, [])
    one = corpus[0]
    changed = [
        [one._replace(language="fr"), *corpus[1:]],
        [one._replace(tags=("B-PER", "O", "O")), *corpus[1:]],
        [one._replace(words=("ab", "a" * 9, "bcb")), *corpus[1:]],
        [one._replace(tags=None), *corpus[1:]],
        corpus[:3],
        corpus[::-1],
    ]
    variants = [(sentences, {}) for sentences in [corpus, *changed]]
    variants += [(corpus, {"max_length": 13}), (corpus, {"overlap": 2})]
    variants += [
        (corpus, {"tokenizer": other}),
        (corpus, {"tagset": TagSet(("LOC", "ORG", "PER"))}),
    ]
    variants += [(corpus, {"tagset": None})]
    defaults = {"tokenizer": tokenizer, "tagset": TAGS, "max_length": 12, "folder": tmp_path}
    found = {encode(sentences, **(defaults | new)).identity for sentences, new in variants}
    assert len(found) == len(variants)


@pytest.mark.parametrize("name", [*(f"{array}.npy" for array in ARRAYS), "manifest.json"])
def test_one_flipped_bit_is_refused_by_name(tokenizer, tmp_path, corpus, name):
    store = encode(corpus, tokenizer, TAGS, max_length=12, folder=tmp_path)
    file = tmp_path / store.identity / name
    content = bytearray(file.read_bytes())
    for position in (0, len(content) // 2, len(content) - 3):
        content[position] ^= 1
        file.write_bytes(content)
        with pytest.raises(StoreError, match=rf"{name} is damaged.*Delete .* to have it built"):
            encode(corpus, tokenizer, TAGS, max_length=12, folder=tmp_path)
        content[position] ^= 1
    file.write_bytes(content)
    encode(corpus, tokenizer, TAGS, max_length=12, folder=tmp_path)
    file.unlink()
    with pytest.raises(StoreError, match=f"{name} is damaged"):
        encode(corpus, tokenizer, TAGS, max_length=12, folder=tmp_path)


def test_a_store_under_another_name_is_refused(tokenizer, tmp_path, corpus):
    store = encode(corpus, tokenizer, TAGS, max_length=12, folder=tmp_path)
    (tmp_path / store.identity).rename(tmp_path / "other")
    with pytest.raises(StoreError, match="name of the folder"):
        load_store(tmp_path / "other")


def test_nothing_is_left_by_a_failure(tokenizer, tmp_path, corpus):
    bad = [*corpus, Sentence(("a",), ("B-ORG",), "de")]
    with pytest.raises(ValueError, match="sentence 4: tag 'B-ORG' is not one of O, B-LOC"):
        encode(bad, tokenizer, TAGS, max_length=12, folder=tmp_path)
    bad = [*corpus, Sentence(("a",), ("O", "O"), "de")]
    with pytest.raises(ValueError, match="sentence 4 has 1 words, but 2 tags"):
        encode(bad, tokenizer, TAGS, max_length=12, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="max_length 7, overlap 1"):
        encode(corpus, tokenizer, TAGS, max_length=7, folder=tmp_path)
    with pytest.raises(ValueError, match="overlap 10"):
        encode(corpus, tokenizer, TAGS, max_length=12, folder=tmp_path, overlap=10)
    many = TagSet(tuple(str(number) for number in range(100)))
    with pytest.raises(ValueError, match="201 tags"):
        encode(corpus, tokenizer, many, max_length=12, folder=tmp_path)


def test_no_tag_set_means_no_labels(tokenizer, folder, corpus):
    assert (encode(corpus, tokenizer, None, max_length=12, folder=folder).labels == -1).all()


def test_store_in_memory_equals_the_one_on_disk(tokenizer, folder, corpus):
    disk = encode(corpus, tokenizer, None, max_length=12, folder=folder)
    memory = encode_in_memory(corpus, tokenizer, max_length=12)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(memory, name), getattr(disk, name))
        assert getattr(memory, name).dtype == getattr(disk, name).dtype
    assert memory.languages == disk.languages


def test_no_sentences(tokenizer, folder):
    store = encode([], tokenizer, TAGS, max_length=12, folder=folder)
    assert (store.rows, len(store.tokens), store.offsets.tolist()) == (0, 0, [0])
    assert stitch(store, store.labels) == []
    assert store.row_hashes().shape == (0, 2)


def test_sentence_without_words_is_a_row_of_frame(tokenizer, folder):
    store = encode([Sentence((), (), "xx")], tokenizer, TAGS, max_length=12, folder=folder)
    assert store.tokens.tolist() == [tokenizer.cls_id, tokenizer.sep_id]
    assert stitch(store, store.labels)[0].tolist() == []


def test_cut_and_remap_equal_encoding_with_the_cut_tokenizer(tokenizer, folder, corpus):
    full = encode(corpus[:3], tokenizer, TAGS, max_length=12, folder=folder)
    counts = piece_counts([full, full], tokenizer.vocab_size)
    expected = 2 * np.bincount(full.tokens, minlength=tokenizer.vocab_size)
    np.testing.assert_array_equal(counts, expected)
    cut, kept = cut_tokenizer(tokenizer, np.flatnonzero(counts))
    assert cut.vocab_size < tokenizer.vocab_size
    remapped = full.remap(kept)
    direct = encode(corpus[:3], cut, TAGS, max_length=12, folder=folder)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(remapped, name), getattr(direct, name))
    assert remapped.tokens.dtype == np.int32
    assert remapped.identity not in (full.identity, full.remap(kept[::-1]).identity)

    more = [Sentence(("a",), None, "xx"), Sentence(("cbca",), None, "xx")]
    lost = encode(more, tokenizer, None, max_length=12, folder=folder)
    piece = tokenizer.backend.token_to_id("##bca")
    with pytest.raises(ValueError, match=rf"piece {piece} of row 1 \(sentence 1\)"):
        lost.remap(kept[kept != piece])
    with pytest.raises(ValueError, match="beyond the 4 pieces"):
        piece_counts([full], 4)


def test_a_part_is_the_store_of_its_sentences(tokenizer, folder, corpus):
    whole = encode(corpus, tokenizer, TAGS, max_length=12, folder=folder)
    assert whole.rows > len(corpus)
    for first, last in ((0, 4), (0, 2), (2, 3), (1, 4), (2, 2), (4, 4)):
        part = whole.part(first, last)
        alone = encode(corpus[first:last], tokenizer, TAGS, max_length=12, folder=folder)
        for name in set(ARRAYS) - {"language"}:
            np.testing.assert_array_equal(getattr(part, name), getattr(alone, name), err_msg=name)
            assert getattr(part, name).dtype == getattr(alone, name).dtype
        codes = [part.languages[number] for number in part.language]
        assert codes == [alone.languages[number] for number in alone.language]


def test_row_hashes_address_content(tokenizer, folder, corpus, monkeypatch):
    one = encode(corpus, tokenizer, TAGS, max_length=12, folder=folder)
    other = encode([corpus[3], corpus[0]], tokenizer, None, max_length=12, folder=folder)
    hashes = one.row_hashes()
    monkeypatch.setattr("xdistil_jax.data.encode._CHUNK", 3)
    np.testing.assert_array_equal(one.row_hashes(), hashes)
    assert hashes.shape == (one.rows, 2)
    assert hashes.dtype == np.uint64
    rows = [tuple(tokens) for _, tokens, _ in rows_of(one)]
    assert len({tuple(pair) for pair in hashes.tolist()}) == len(set(rows))
    np.testing.assert_array_equal(other.row_hashes()[0], hashes[-1])
    assert len({number for pair in hashes.tolist() for number in pair}) == 2 * len(set(rows))
    frame = encode([Sentence((), None, "xx")], tokenizer, None, max_length=8, folder=folder)
    # blake2b of 02000000 03000000: a teacher cache on disk rests on these numbers.
    assert frame.row_hashes().tolist() == [[9005617805004518559, 6455465309218068080]]


def test_stitch_takes_numbers_or_vectors_and_refuses_other_lengths(tokenizer, folder, corpus):
    store = encode(corpus, tokenizer, TAGS, max_length=12, folder=folder)
    numbers = np.arange(len(store.tokens))
    pairs = np.stack([numbers, -numbers], axis=1)
    for one, two in zip(stitch(store, numbers), stitch(store, pairs), strict=True):
        np.testing.assert_array_equal(np.stack([one, -one], axis=1), two)
        assert len(set(one.tolist())) == len(one)
    with pytest.raises(ValueError, match="expected one for each"):
        stitch(store, numbers[1:])


@pytest.mark.skipif(not (DATA / "wikiann").is_dir(), reason="no shared data")
def test_real_text_keeps_its_entities(tmp_path):
    corpus = []
    for language in ("ta", "pl"):
        text = (DATA / "wikiann" / language / "dev.txt").read_text("utf-8")
        for block in text.strip("\n").split("\n\n"):
            found, tags = zip(*(line.split("\t") for line in block.split("\n")), strict=True)
            corpus.append(Sentence(found, tags, language))
    tagset = TagSet.of(tag for sentence in corpus for tag in sentence.tags)
    full = load_tokenizer(DATA / "vocab/bert-base-multilingual-cased-vocab.txt")
    for max_length in (16, 128):
        store = encode(corpus, full, tagset, max_length=max_length, folder=tmp_path)
        found = [tagset.decode(numbers) for numbers in stitch(store, store.labels)]
        assert found == [sentence.tags for sentence in corpus]
        assert store.rows > len(corpus)
    manifest = json.loads((tmp_path / store.identity / "manifest.json").read_text())
    assert manifest["content"]["source"]["max_length"] == 128
