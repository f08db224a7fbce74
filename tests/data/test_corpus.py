"""The corpus: what training may see, in an order that the seed decides, and never the test set."""

import builtins
import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.toys import spec_of, two_languages, write
from xdistil_jax.data.corpus import (
    CorpusError,
    DataSpec,
    Sentence,
    load_corpus,
    load_held_out,
    load_test,
    load_text,
)
from xdistil_jax.labels import TagSet


@pytest.fixture
def root(tmp_path):
    return two_languages(tmp_path)


def test_folders_of_languages(root):
    corpus = load_corpus(spec_of(root))
    assert corpus.languages == ("de", "en")
    assert corpus.tagset == TagSet(("PER",))
    assert [s.language for s in corpus.train] == ["de"] * 21 + ["en"] * 21
    assert corpus.dev[0] == Sentence(("de", "dev"), ("B-PER", "B-PER"), "de")
    assert load_test(spec_of(root))[1].words == ("en", "test")
    assert corpus.log.notes == ["no unlabelled text for de"]


def test_transfer_is_train_text_then_unlabelled_without_dev(root):
    corpus = load_corpus(spec_of(root))
    assert all(sentence.tags is None for sentence in corpus.transfer)
    words = [sentence.words for sentence in corpus.transfer]
    assert words[:40] == [s.words for s in corpus.train if s.words != ("same",)]
    assert words[40:] == [("line", str(n), ".") for n in range(30)]
    assert corpus.log.dropped == 4
    unlabelled = load_corpus(spec_of(root, train_as_transfer=False)).transfer
    assert [sentence.words for sentence in unlabelled] == words[40:]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_languages_choose(root, split):
    corpus = load_corpus(spec_of(root, languages=("en",)))
    assert {sentence.language for sentence in getattr(corpus, split)} == {"en"}
    other = root / "de.txt"
    other.write_text("ein Satz\n")
    corpus = load_corpus(spec_of(root, languages=("en",), unlabelled=(str(other),)))
    assert {sentence.language for sentence in corpus.transfer} == {"en"}
    assert corpus.log.notes == [f"{other}: no sentence in en; left out"]
    with pytest.raises(CorpusError, match=r"ner/eng: no such file; .* holds en"):
        load_corpus(spec_of(root, languages=("eng",)))


def test_limits_draw_by_language_and_grow_from_the_beginning(root):
    def drawn(**options):
        corpus = load_corpus(spec_of(root, **options))
        english = [s.words for s in corpus.train if s.language == "en"]
        return english, [s.words for s in corpus.transfer if s.words[0] == "line"]

    small, lines = drawn(train_limit=5, unlabelled_limit=5)
    larger, more = drawn(train_limit=9, unlabelled_limit=9)
    assert (len(small), len(lines)) == (5, 5)
    assert (larger[:5], more[:5]) == (small, lines)
    assert drawn(train_limit=5, unlabelled_limit=5) == (small, lines)
    assert drawn(train_limit=5, unlabelled_limit=5, seed=1) != (small, lines)
    alone = load_corpus(spec_of(root, train_limit=5, languages=("en",)))
    assert [s.words for s in alone.train] == small
    whole, all_lines = drawn(train_limit=99, unlabelled_limit=99)
    assert (len(whole), len(all_lines)) == (21, 30)


def test_drawn_sentences_are_golden(root):
    """Recorded figures rest on which sentences a seed draws."""
    corpus = load_corpus(spec_of(root, train_limit=4, languages=("en",), seed=7))
    assert [" ".join(s.words) for s in corpus.train] == ["en 7", "en 19", "en 11", "en 16"]


def test_a_budget_of_labels_keeps_the_text(root):
    whole = load_corpus(spec_of(root))
    corpus = load_corpus(spec_of(root, labels_per_language=10))
    assert [s.language for s in corpus.train] == ["de"] * 8 + ["en"] * 8
    assert [s.language for s in corpus.stopping] == ["de"] * 2 + ["en"] * 2
    assert all(s.tags for s in (*corpus.train, *corpus.stopping))
    assert (corpus.dev, corpus.tagset) == (whole.dev, whole.tagset)
    assert whole.stopping == whole.dev
    # All text is there, that of labelled sentences first, but for what decides when to stop.
    carved = {s.words for s in corpus.stopping}
    words = [s.words for s in corpus.transfer]
    assert sorted(words) == sorted(s.words for s in whole.transfer if s.words not in carved)
    labelled = [s.words for s in corpus.train if s.words != ("same",)]
    assert words[: len(labelled)] == labelled
    assert not any(s.tags for s in corpus.transfer)
    assert {
        "Labels: 10 sentences for each language.",
        "4 labelled sentences of train, on which nothing was trained, decided when to stop; dev "
        "did not.",
    } < set(corpus.log.notes)
    cut = load_corpus(spec_of(root, train_limit=10))
    assert len(cut.transfer) < len(corpus.transfer), "train_limit cuts text, too"
    assert (
        load_corpus(spec_of(root, labels_per_language=10, dev_from_train=0.0)).stopping == whole.dev
    )
    bare = load_corpus(spec_of(root, labels_per_language=10, train_as_transfer=False))
    assert {s.words[0] for s in bare.transfer} == {"line"}


def test_a_withheld_language_gives_its_text_only(root):
    whole = load_corpus(spec_of(root))
    corpus = load_corpus(spec_of(root, zero_shot=("de",)))
    assert {s.language for s in (*corpus.train, *corpus.stopping)} == {"en"}
    assert corpus.dev == whole.dev
    assert sorted(corpus.transfer) == sorted(whole.transfer)
    # There need be no labels of it at all, and its unlabelled text is read like any other's.
    (root / "ner" / "de" / "train.txt").unlink()
    (root / "text" / "de.txt").write_text("noch eine Zeile .\n")
    for languages in ((), ("de", "en")):
        alone = load_corpus(spec_of(root, zero_shot=("de",), languages=languages))
        assert alone.train == corpus.train
        assert [s.words for s in alone.transfer if s.language == "de"] == [
            ("noch", "eine", "Zeile", ".")
        ]
    with pytest.raises(CorpusError, match=r"ner/de: no train file"):
        load_corpus(spec_of(root, languages=("de", "en")))
    with pytest.raises(CorpusError, match=r"data.zero_shot names xx"):
        load_corpus(spec_of(root, zero_shot=("xx",)))


@pytest.mark.parametrize("limit", [0, 10, 30, 60, 500])
def test_one_limit_for_all_transfer_text(root, limit):
    whole = load_corpus(spec_of(root, labels_per_language=10))
    corpus = load_corpus(spec_of(root, labels_per_language=10, transfer_limit=limit))
    assert (corpus.train, corpus.stopping) == (whole.train, whole.stopping)
    assert len(corpus.transfer) == min(limit, len(whole.transfer))
    found = [s.words for s in corpus.transfer]
    assert found == [s.words for s in whole.transfer if s.words in found]
    labelled = {s.words for s in corpus.train} - {("same",)}
    assert labelled <= set(found) or limit < len(labelled)


@pytest.mark.parametrize("damage", ["missing", "broken", "double"])
@pytest.mark.parametrize("by", ["root", "file"])
def test_the_test_set_is_read_by_load_test_alone(root, monkeypatch, damage, by):
    folder = root / "ner" / "en"
    path = folder / "test.txt"
    if damage == "missing":
        path.unlink()
    elif damage == "broken":
        path.write_bytes(b"\xff\tX\n")
    else:
        (folder / "test.txt.gz").write_bytes(gzip.compress(b"a\tO\n"))
        path.write_bytes(b"")
    opened = []
    monkeypatch.setattr(builtins, "open", _spy(opened, builtins.open))
    monkeypatch.setattr(gzip, "open", _spy(opened, gzip.open))
    options = {"test": str(path)} if by == "file" else {}
    corpus = load_corpus(spec_of(root, **options))
    assert "train.txt" in {path.name for path in opened}
    assert not [path for path in opened if path.name.startswith("test")]
    assert not any("test" in sentence.words for sentence in (*corpus.train, *corpus.transfer))
    with pytest.raises(CorpusError, match="test"):
        load_test(spec_of(root, **options))


def _spy(opened, function):
    def spy(path, *arguments, **options):
        opened.append(Path(str(path)))
        return function(path, *arguments, **options)

    return spy


def test_load_test_needs_nothing_else(root):
    for name in ("train.txt", "dev.txt"):
        (root / "ner" / "en" / name).write_bytes(b"\xff")
    assert len(load_test(spec_of(root))) == 2


def test_what_is_missing_or_wrong_is_said(root):
    train, dev = write(root / "a.txt", "x", tag="B-LOC"), write(root / "b.txt", "z", tag="B-GPE")
    with pytest.raises(CorpusError, match=r"no train set: name its file \(data.train\)"):
        load_corpus(DataSpec())
    with pytest.raises(CorpusError, match=r"no dev set"):
        load_corpus(DataSpec(train=train))
    with pytest.raises(CorpusError, match=r"b\.txt, line 1: tag 'B-GPE' is none of the types LOC"):
        load_corpus(DataSpec(train=train, dev=dev))
    mapped = load_corpus(DataSpec(train=train, dev=dev, tag_map=(("GPE", "LOC"),)))
    assert mapped.dev[0].tags == ("B-LOC",)
    assert load_corpus(DataSpec(train=train, dev=dev, types=("GPE", "LOC"))).tagset.types == (
        "GPE",
        "LOC",
    )
    plain = root / "c.txt"
    plain.write_text("One line, please.\n")
    with pytest.raises(CorpusError, match=r"c\.txt: a train set needs tags"):
        load_corpus(DataSpec(train=str(plain), dev=dev))
    (root / "ner" / "en" / "dev.txt").unlink()
    with pytest.raises(CorpusError, match=r"en: no dev file; expected dev\.txt, found test\.txt"):
        load_corpus(spec_of(root))
    spec = DataSpec(train=train, dev=str(plain), unlabelled_root=str(root / "text2"))
    with pytest.raises(CorpusError, match=r"text2: no such file; .* holds text"):
        load_corpus(replace(spec, dev=write(root / "d.txt", "z", tag="B-LOC")))


def test_the_embedded_corpus_is_read_by_the_same_rules():
    spec = DataSpec(synthetic=True, languages=("de", "en"), train_limit=10, unlabelled_limit=20)
    corpus = load_corpus(spec)
    assert corpus.languages == ("de", "en")
    assert (len(corpus.train), len(corpus.transfer)) == (20, 60)
    assert corpus.tagset == TagSet(("LOC", "ORG", "PER"))
    assert load_corpus(spec) == corpus
    texts = {s.words for s in (*corpus.train, *corpus.transfer, *corpus.dev)}
    assert not texts & {sentence.words for sentence in load_test(spec)}


def test_text_to_pretrain_on_is_transfer_text_where_there_are_labels(root):
    text, _ = load_text(spec_of(root))
    assert list(text) == list(load_corpus(spec_of(root)).transfer)


def test_text_to_pretrain_on_needs_no_labels(root):
    folder = root / "text"
    (folder / "de.txt").write_text("eine Zeile\n")
    (folder / "README.txt").write_text("about these files\n")
    plain = DataSpec(unlabelled_root=str(folder))
    text, log = load_text(plain)
    assert {sentence.language for sentence in text} == {"de", "en"}
    assert len(text) == log.sentences == 33
    assert {len(load_text(replace(plain, unlabelled_limit=n))[0]) for n in (4,)} == {5}
    only, _ = load_text(replace(plain, languages=("de",)))
    assert list(only) == [Sentence(("eine", "Zeile"), None, "de")]
    dev = write(root / "dev.txt", "same", "en dev")
    apart, _ = load_text(replace(plain, dev=dev))
    assert len(apart) == 31
    named, _ = load_text(DataSpec(unlabelled=(str(folder / "de.txt"),)))
    assert list(named) == list(only)
    with pytest.raises(CorpusError, match="no text: name files"):
        load_text(DataSpec(dev=dev))
    with pytest.raises(CorpusError, match="nowhere"):
        load_text(DataSpec(unlabelled_root="nowhere"))


def test_what_is_held_out_is_dev_and_test(root):
    words = [" ".join(sentence.words) for sentence in load_held_out(spec_of(root))]
    assert words == ["de dev", "same", "en dev", "same", "de test", "en test"]
    only_dev = DataSpec(dev=str(root / "ner" / "de" / "dev.txt"))
    assert len(list(load_held_out(only_dev))) == 2
    assert not list(load_held_out(DataSpec()))
