"""Which files a corpus is read from, and which are refused."""

import gzip
from dataclasses import replace

import pytest

from tests.data.toys import spec_of, two_languages, write
from xdistil_jax.data.corpus import CorpusError, DataSpec, load_corpus, load_held_out, load_text


@pytest.fixture
def root(tmp_path):
    return two_languages(tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"root": "FILE"}, "expected a folder, or an ordinary file"),
        ({"train": "FOLDER", "format": "conll"}, "expected a file"),
        ({"unlabelled_root": "FILE"}, "expected a folder"),
    ],
)
def test_a_file_for_a_folder_is_told_and_the_other_way_round(root, given, said):
    (root / "a.txt").write_text("a O\n")
    places = {"FILE": str(root / "a.txt"), "FOLDER": str(root)}
    changes = {name: places.get(value, value) for name, value in given.items()}
    spec = replace(spec_of(root), **changes)
    with pytest.raises(CorpusError, match=said):
        load_corpus(spec)


def test_one_file_is_one_split(root):
    train, dev = str(root / "ner/en/train.txt"), str(root / "ner/en/dev.txt")
    other = str(root / "ner/en/../en/train.txt")
    for options in (
        {"train": train, "dev": other},
        {"train": train, "dev": dev, "test": dev},
        {"train": train, "dev": dev, "unlabelled": (dev,)},
        {"train": train, "dev": dev, "unlabelled": (train,)},
        {"root": str(root / "ner"), "dev": train},
        {"root": str(root / "ner"), "unlabelled": (str(root / "ner/de/test.txt"),)},
    ):
        with pytest.raises(CorpusError, match="one file is one split"):
            load_corpus(DataSpec(**options))
    spec = DataSpec(train=train, dev=dev, unlabelled=(train,), train_as_transfer=False)
    assert len(load_corpus(spec).transfer) == 20


def test_two_files_that_claim_a_split(root):
    (root / "ner/en/dev.txt.gz").write_bytes(gzip.compress(b"a\tO\n"))
    with pytest.raises(CorpusError, match=r"dev\.txt and dev\.txt\.gz both claim"):
        load_corpus(spec_of(root))


def test_files_by_name(root):
    train = write(root / "a.txt", "x y", tag="B-LOC")
    dev = write(root / "b.txt", "z", tag="B-LOC")
    plain = root / "c.txt"
    plain.write_text("One line, please.\n\nz\n")
    spec = DataSpec(train=train, dev=dev, unlabelled=(str(plain),))
    corpus = load_corpus(spec)
    assert [s.words for s in corpus.transfer] == [("x", "y"), ("One", "line", ",", "please", ".")]
    assert corpus.languages == ("und",)
    named = load_corpus(DataSpec(train=train, dev=dev, unlabelled=(str(plain),), languages=("fr",)))
    assert named.languages == ("fr",)


@pytest.mark.parametrize("held", [(), ("TRAIN.txt",), ("en/TRAIN.txt",), ("en/dev.txt",)])
def test_a_root_without_train_files_is_told(tmp_path, held):
    for name in held:
        write(tmp_path / name, "a b", tag="B-LOC")
    found = held[0].partition("/")[0] if held else "nothing"
    said = rf"{tmp_path}: expected .* LANGUAGE/train\.txt, found {found}: .* \(data\.root\)"
    with pytest.raises(CorpusError, match=said):
        load_corpus(DataSpec(root=str(tmp_path)))
    if "en/dev.txt" not in held:
        dev = DataSpec(train=write(tmp_path / "a.txt", "x"), root=str(tmp_path))
        with pytest.raises(CorpusError, match=r"LANGUAGE/dev\.txt, found"):
            load_corpus(dev)


def test_text_is_kept_apart_from_a_root_with_only_a_test_set(tmp_path):
    write(tmp_path / "en" / "test.txt", "a b")
    assert [each.words for each in load_held_out(DataSpec(root=str(tmp_path)))] == [("a", "b")]


@pytest.mark.parametrize("held", [(), ("README.txt", "notes.txt")])
def test_an_unlabelled_root_without_languages_is_told(tmp_path, held):
    for name in held:
        (tmp_path / name).write_text("some words\n")
    spec = DataSpec(unlabelled_root=str(tmp_path))
    found = ", ".join(held) or "nothing"
    said = rf"{tmp_path}: expected LANGUAGE\.txt, such as de\.txt, found {found}: "
    with pytest.raises(CorpusError, match=said):
        load_text(spec)
    with pytest.raises(CorpusError, match=r"vi\.txt: no such file; .* holds"):
        load_text(replace(spec, languages=("vi", "th")))
    if held:
        named, _ = load_text(replace(spec, languages=("notes",)))
        assert [each.words for each in named] == [("some", "words")]
