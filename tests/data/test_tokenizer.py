"""Pieces equal the library's own, no word vanishes, a cut tokenizer cuts seen text as before."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers
from tokenizers.implementations import BertWordPieceTokenizer

from xdistil_jax.data import tokenizer as module
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.cutting import cut_tokenizer
from xdistil_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
DATA = ROOT / "../shared/data"
MBERT = DATA / "vocab/bert-base-multilingual-cased-vocab.txt"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TEXT = [
    "Grüße aus Köln, sagte Émile .",
    "Köln liegt am Rhein ; Koblenz auch .",
    "Привет из Москвы ! 東京 は 日本",
    "aaaa abab baba aabb",
]
SENTENCES = [Sentence(tuple(line.split()), None, "xx") for line in TEXT]

words = st.text(max_size=8) | st.sampled_from(
    [*"aé,東\x00", "Köln", "[SEP]", "a b", "\u200d", "x" * 120]
)


def write_vocab(folder, pieces, name="vocab.txt", **config):
    (folder / name).write_text("".join(f"{piece}\n" for piece in pieces), "utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def closed_wordpiece(pieces):
    """WordPiece over a, b and c with some longer pieces, the special pieces in odd places."""
    singles = [prefix + char for char in "abc" for prefix in ("", "##")]
    vocab = ["[PAD]", "x1", *singles, "[UNK]", *pieces, "[SEP]", "[CLS]"]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(vocab))}
    return module._wrap(module._wordpiece(numbers, source="test"), {}, "test")


def unigram(scores):
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend = tokenizers.Tokenizer(
        models.Unigram([*((piece, 0.0) for piece in special), *scores.items()], unk_id=3)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(special)
    module.frame(backend, 0, 2)
    return module._wrap(backend, {}, "test")


def byte_level(texts, vocab_size=330):
    """RoBERTa's kind: BPE over bytes, which marks the space before a word."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    module.frame(backend, 0, 2)
    return module._wrap(backend, {}, "test")


def used_ids(tokenizer, sentences):
    return {piece for sent in tokenizer.pieces(sentences) for word in sent for piece in word}


def back(pieces, kept):
    return [[kept[word].tolist() for word in sentence] for sentence in pieces]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(SENTENCES, 80)


@settings(deadline=None)
@given(sentences=st.lists(st.lists(words, max_size=6), max_size=4))
def test_pieces_equal_the_librarys_on_pretokenized_text(trained, sentences):
    encodings = trained.backend.encode_batch(
        sentences, is_pretokenized=True, add_special_tokens=False
    )
    expected = [[[] for _ in sentence] for sentence in sentences]
    for sentence, encoding in zip(expected, encodings, strict=True):
        for number, piece in zip(encoding.word_ids, encoding.ids, strict=True):
            sentence[number].append(piece)
    expected = [[word or [trained.unk_id] for word in sentence] for sentence in expected]
    assert trained.pieces(sentences) == expected


@settings(deadline=None)
@given(word=words)
def test_text_spells_no_special_piece(trained, word):
    (((first, *rest),),) = trained.pieces([[word]])
    special = {trained.pad_id, trained.cls_id, trained.sep_id}
    assert special.isdisjoint([first, *rest])


def test_word_pieces_are_ragged(trained):
    ids, offsets = trained.word_pieces(["aab", "", "\x00", "Köln"])
    assert ids.dtype == np.int32
    assert offsets.dtype == np.int64
    assert offsets[0] == 0
    assert offsets[-1] == len(ids)
    assert ids[offsets[1] : offsets[3]].tolist() == [trained.unk_id] * 2
    assert trained.word_pieces([])[1].tolist() == [0]


def test_training_covers_every_character_and_merges(trained):
    ids = used_ids(trained, [sentence.words for sentence in SENTENCES])
    assert trained.unk_id not in ids
    assert trained.vocab_size == 80
    assert max(len(trained.backend.id_to_token(piece)) for piece in ids) > 3
    assert len({trained.pad_id, trained.unk_id, trained.cls_id, trained.sep_id}) == 4


def test_characters_exceed_a_small_vocabulary():
    small = train_tokenizer(SENTENCES, 10)
    assert small.vocab_size > 10
    assert small.unk_id not in used_ids(small, [sentence.words for sentence in SENTENCES])


def test_training_is_a_function_of_the_text():
    # Hash maps are seeded anew for each map and each process.
    code = (
        "from tests.data.test_tokenizer import SENTENCES, train_tokenizer\n"
        "print(train_tokenizer(SENTENCES, 80).fingerprint)"
    )
    other = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip()
    assert {train_tokenizer(SENTENCES, 80).fingerprint for _ in range(5)} == {other}


def test_import_needs_neither_jax_nor_transformers():
    code = "import sys, xdistil_jax.data.tokenizer; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    assert {"jax", "transformers", "jaxtyping", "torch"}.isdisjoint(loaded)


def test_saved_tokenizer_is_the_same(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    trained.save(tmp_path / "a")
    assert load_tokenizer("~/a").fingerprint == trained.fingerprint
    loaded = load_tokenizer(tmp_path / "a")
    assert loaded.fingerprint == trained.fingerprint
    assert loaded.special_ids == trained.special_ids
    assert loaded.pieces([TEXT]) == trained.pieces([TEXT])
    assert load_tokenizer(tmp_path / "a" / "tokenizer.json").fingerprint == trained.fingerprint


def test_fingerprint_tells_vocabulary_and_case_apart(tmp_path):
    pieces = [*SPECIAL, "a", "##a", "A"]
    plain = load_tokenizer(write_vocab(tmp_path, pieces)).fingerprint
    assert load_tokenizer(write_vocab(tmp_path, pieces, do_lower_case=True)).fingerprint != plain
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(write_vocab(tmp_path, [*pieces, "b"])).fingerprint != plain
    assert load_tokenizer(write_vocab(tmp_path, pieces)).fingerprint == plain


def test_truncation_and_padding_of_a_file_are_switched_off(trained, tmp_path):
    backend = tokenizers.Tokenizer.from_str(trained.backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(pad_id=trained.pad_id, pad_token="[PAD]", length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.pieces([["a" * 30]]) == trained.pieces([["a" * 30]])
    assert loaded.fingerprint == trained.fingerprint


@pytest.mark.parametrize("lowercase", [False, True])
def test_vocab_txt_is_read_as_bert_reads_it(tmp_path, lowercase):
    pieces = [*SPECIAL, *"Eeéaklnö,東", *(f"##{char}" for char in "élköoneK"), "##ol"]
    write_vocab(tmp_path, pieces, do_lower_case=lowercase)
    reference = BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=lowercase)
    text = ["Éé", "köln,東", "Köln", "ek", "E"]
    expected = [reference.encode(word, add_special_tokens=False).ids for word in text]
    assert load_tokenizer(tmp_path).pieces([text]) == [expected]


@pytest.mark.parametrize("capitals", [[], ["B"]])
def test_a_vocabulary_without_capitals_is_of_lower_case_text(tmp_path, capitals):
    pieces = [*SPECIAL, *capitals, "berlin", "in", "koln"]
    write_vocab(tmp_path, pieces)
    text = ["Berlin", "in", "KÖLN", "B"]
    reference = BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=not capitals)
    expected = [reference.encode(word, add_special_tokens=False).ids for word in text]
    assert load_tokenizer(tmp_path).pieces([text]) == [expected]


def test_special_pieces_are_found_by_config_and_frame(tmp_path):
    write_vocab(tmp_path, ["[UNK]", "a", "[CLS]", "[PAD]", "[SEP]"])
    assert load_tokenizer(tmp_path).special_ids == (3, 0, 2, 4)
    assert unigram({"▁": -1.0}).special_ids == (1, 3, 0, 2)
    backend = tokenizers.Tokenizer(
        models.WordPiece({"!": 0, "?": 1, "(": 2, ")": 3}, unk_token="?")
    )
    names = {"pad_token": "!", "cls_token": {"content": "("}, "sep_token": ")"}
    assert module._wrap(backend, names, "test").special_ids == (0, 1, 2, 3)
    with pytest.raises(ValueError, match=r"here: the tokenizer has no pad_token.*tokenizer_config"):
        module._wrap(backend, {}, "here")


@settings(deadline=None)
@given(
    pieces=st.lists(st.from_regex(r"(##)?[abc]{2,4}", fullmatch=True)),
    seen=st.lists(st.lists(st.text("abcd", max_size=9), max_size=4), max_size=3),
    new=st.lists(st.text("abcd", max_size=9)),
)
def test_cut_wordpiece_cuts_seen_text_as_before(pieces, seen, new):
    full = closed_wordpiece(pieces)
    cut, kept = cut_tokenizer(full, used_ids(full, seen))
    assert back(cut.pieces(seen), kept) == full.pieces(seen)
    assert kept.dtype == np.int32
    assert len(kept) == cut.vocab_size
    names = [full.backend.id_to_token(old) for old in kept]
    assert names == [cut.backend.id_to_token(new_id) for new_id in range(len(kept))]
    special = sorted(full.special_ids)
    assert kept[: len(special)].tolist() == special
    assert (np.diff(kept[len(special) :]) > 0).all()
    assert kept[list(cut.special_ids)].tolist() == list(full.special_ids)
    for word in new:
        (before,), (after,) = full.pieces([[word]])[0], cut.pieces([[word]])[0]
        assert (full.unk_id in before) == (cut.unk_id in after)


@settings(deadline=None)
@given(
    scores=st.dictionaries(st.text("▁ab", min_size=2, max_size=4), st.floats(-9, -1)),
    seen=st.lists(st.text("abc", max_size=9)),
    new=st.text("ab", min_size=1, max_size=9),
)
def test_cut_unigram_cuts_seen_text_as_before(scores, seen, new):
    full = unigram({"▁": -5.0, "a": -6.5, "b": -7.25, **scores})
    cut, kept = cut_tokenizer(full, used_ids(full, [seen]))
    assert back(cut.pieces([seen]), kept) == full.pieces([seen])
    assert cut.unk_id not in cut.pieces([[new]])[0][0]
    assert kept[list(cut.special_ids)].tolist() == list(full.special_ids)


BPE = byte_level(["abc abab cabc bcabab", "äb aäbc", "ababab bcbc"] * 3)


@settings(deadline=None)
@given(seen=st.lists(st.text("abcä", min_size=1, max_size=9)), new=st.text(min_size=1, max_size=9))
def test_cut_bpe_cuts_seen_text_as_before(seen, new):
    cut, kept = cut_tokenizer(BPE, used_ids(BPE, [seen]))
    assert back(cut.pieces([seen]), kept) == BPE.pieces([seen])
    assert kept[list(cut.special_ids)].tolist() == list(BPE.special_ids)
    # Every byte is still there, so nothing is ever unknown.
    assert cut.unk_id not in cut.pieces([[new]])[0][0]
    assert cut.vocab_size < BPE.vocab_size or not seen or len(set("".join(seen))) > 2


def test_words_of_bpe_get_the_space_before_them():
    [[pieces]] = BPE.pieces([["abab"]])
    assert "".join(map(BPE.backend.id_to_token, pieces)) == "Ġabab"


def test_cost_of_the_unknown_survives_a_cut():
    # x is known only in "xa". The unknown costs 10 more than the rarest piece, here "bbb".
    full = unigram({"▁": -1.0, "a": -12.0, "b": -12.0, "xa": -12.0, "ab": -1.0, "bbb": -30.0})
    seen = [["xab", "ab"]]
    assert full.unk_id not in used_ids(full, seen)
    cut, kept = cut_tokenizer(full, used_ids(full, seen))
    assert back(cut.pieces(seen), kept) == full.pieces(seen)


def test_a_mask_outside_of_the_unigram_model_goes(tmp_path):
    """As DeBERTa-v3 has it: number 128,000 of 128,000 pieces."""
    full = unigram({"▁": -1.0, "a": -2.0, "b": -2.0, "ab": -1.0, "[": -9.0})
    full.backend.add_special_tokens(["[MASK]"])
    assert full.backend.token_to_id("[MASK]") == 9
    seen = [["ab", "b[a", "[MASK]"]]
    cut, kept = cut_tokenizer(full, used_ids(full, seen))
    assert cut.backend.token_to_id("[MASK]") is None
    assert back(cut.pieces(seen), kept) == full.pieces(seen)
    assert 9 not in cut_tokenizer(full, range(full.vocab_size))[1]
    assert kept[list(cut.special_ids)].tolist() == list(full.special_ids)
    cut.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == cut.fingerprint


def test_a_sentencepiece_model_alone_is_read_and_cut(tmp_path):
    """As DeBERTa-v3 lies on the hub: no tokenizer.json."""
    pieces = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}
    numbers = {f"{name}_id": number for number, name in enumerate(pieces)}
    text = iter([f"Anna wohnt in Haus {number} am See" for number in range(300)])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=text, model_prefix=str(tmp_path / "spm"), vocab_size=40, minloglevel=2,
        **numbers, **{f"{name}_piece": piece for name, piece in pieces.items()},
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    full, seen = load_tokenizer(tmp_path), [["Anna", "wohnt", "[MASK]"]]
    assert full.backend.token_to_id("[MASK]") == 40
    assert full.special_ids == (0, 3, 1, 2)
    cut, kept = cut_tokenizer(full, used_ids(full, seen))
    assert cut.vocab_size < 40
    assert back(cut.pieces(seen), kept) == full.pieces(seen)


def test_cut_removes_what_is_not_used_and_survives_saving(trained, tmp_path):
    cut, kept = cut_tokenizer(trained, used_ids(trained, [["aabb"]]))
    lost = set(range(trained.vocab_size)) - set(kept.tolist())
    assert lost
    assert all(len(trained.backend.id_to_token(old).removeprefix("##")) > 1 for old in lost)
    cut.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == cut.fingerprint != trained.fingerprint
    assert cut.backend.encode("aabb").ids[0] == cut.cls_id
    assert cut.backend.encode("aabb").ids[-1] == cut.sep_id
    again, same = cut_tokenizer(cut, range(cut.vocab_size))
    assert again.fingerprint == cut.fingerprint
    assert same.tolist() == list(range(cut.vocab_size))


def test_cut_refuses_what_it_cannot_do(trained):
    with pytest.raises(ValueError, match="piece 80 is not in"):
        cut_tokenizer(trained, [80])
    words = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0}, "a")), 0, 0, 0, 0)
    with pytest.raises(ValueError, match="can't cut a WordLevel tokenizer: expected WordPiece, U"):
        cut_tokenizer(words, [0])


def test_complaints_name_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no/such/thing.*no such file.*expected a folder"):
        load_tokenizer(tmp_path / "no/such/thing")
    write_vocab(tmp_path, ["[PAD]", "a"])
    with pytest.raises(ValueError, match=r"vocab\.txt.*lacks \[UNK\], \[CLS\], \[SEP\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected"):
        load_tokenizer(tmp_path)
    from transformers import AutoTokenizer

    def refuse(name, **options):
        assert options == {"use_fast": True, "trust_remote_code": False, "revision": "v2"}
        raise KeyError() if name == "some/other" else OSError("\nno route to host")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(OSError, match=r"'some/model'.*hub.*no route to host"):
        load_tokenizer("some/model", "v2")
    with pytest.raises(OSError, match=r"'some/other'.*hub.*It said: KeyError"):
        load_tokenizer("some/other", "v2")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(OSError, match=r"expected a folder with tokenizer\.json"):
        load_tokenizer(empty)


@pytest.mark.skipif(not MBERT.is_file(), reason="no shared data")
def test_mbert_cut_to_real_text_cuts_it_as_before():
    full = load_tokenizer(MBERT)
    assert (full.vocab_size, full.special_ids) == (119547, (0, 100, 101, 102))
    assert full.backend.encode("Köln", add_special_tokens=True).tokens[0] == "[CLS]"
    lines = []
    for path in sorted((DATA / "unlabelled").glob("*.txt")):
        with path.open(encoding="utf-8") as file:
            lines += [next(file).split() for _ in range(40)]
    seen, new = lines[::2], lines[1::2]
    cut, kept = cut_tokenizer(full, used_ids(full, seen))
    assert back(cut.pieces(seen), kept) == full.pieces(seen)
    for before, after in zip(full.pieces(new), cut.pieces(new), strict=True):
        for one, other in zip(before, after, strict=True):
            assert (full.unk_id in one) == (cut.unk_id in other)
