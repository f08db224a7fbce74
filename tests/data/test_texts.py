"""Readers for classification: what is written comes back, and what is wrong is named by line."""

import gzip
import json

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xdistil_jax.data.corpus import DataSpec, load_corpus, load_test
from xdistil_jax.data.readers import PAIR, ReadLog, Sentence
from xdistil_jax.data.sources import CorpusError
from xdistil_jax.data.texts import classes_of, is_pair, read_texts
from xdistil_jax.labels import ClassSet
from xdistil_jax.text import words_of

TMP = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# No separators of the format, and something to be seen; whatever else stands in a text stays.
TEXTS = st.text(
    st.characters(exclude_characters="\t\n\r\ufeff", exclude_categories=["Cs"]), min_size=1
).filter(lambda text: words_of(text) and not text.isspace())
CLASSES = st.text(st.characters(categories=["L", "N", "P"], exclude_characters=":"), min_size=1)
KNOWN = ["text", "label", "sentence"]


@st.composite
def corpora(draw, pairs):
    """(texts, class) each; at least one is not like the names of columns."""
    count = draw(st.integers(1, 5))
    rows = [
        (tuple(draw(TEXTS) for _ in range(1 + pairs)), draw(CLASSES)) for _ in range(count)
    ]  # fmt: skip
    return [(("x", *texts[1:]), label) if texts[0].strip() in KNOWN else (texts, label)
            for texts, label in rows]  # fmt: skip


def expected(texts, label, language):
    words = words_of(texts[0])
    if len(texts) == 2:
        words = (*words, PAIR, *words_of(texts[1]))
    return Sentence(words, None if label is None else (label,), language)


def write(path, text, zipped=False):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


@TMP
@given(data=st.data(), pairs=st.booleans(), prefixed=st.booleans(), zipped=st.booleans())
def test_what_is_written_is_read(tmp_path, data, pairs, prefixed, zipped):
    rows = data.draw(corpora(pairs))
    lines = ["\t".join([*texts, f"{'de:' * prefixed}{label}"]) for texts, label in rows]
    path = write(tmp_path / "train.tsv", "\n".join(lines) + "\n", zipped)
    language = "de" if prefixed else "und"
    found = list(read_texts(path, pairs=pairs))
    assert found == [expected(*row, language) for row in rows]
    assert all(is_pair(each) == pairs for each in found)
    unlabelled = list(read_texts(path, labelled=False, pairs=pairs, language="fr"))
    assert unlabelled == [expected(texts, None, "fr") for texts, _ in rows]


@TMP
@given(st.lists(st.integers(-20, 200), min_size=1))
def test_integers_are_ordered_by_value_and_words_by_letter(numbers):
    assert ClassSet.of(map(str, numbers)).classes == tuple(map(str, sorted(set(numbers))))
    words = {f"c{number}" for number in numbers} | {"1"}
    assert ClassSet.of(words).classes == tuple(sorted(words))


def test_columns_tell_pairs_from_single_texts(tmp_path):
    single = write(tmp_path / "a.tsv", "gut so\tpos\nschlecht\tneg\n")
    paired = write(tmp_path / "b.tsv", "gut\tsehr gut\t1\nschlecht\tgut\t0\n")
    assert not any(map(is_pair, read_texts(single)))
    assert [each.words for each in read_texts(paired)] == [
        ("gut", PAIR, "sehr", "gut"), ("schlecht", PAIR, "gut")
    ]  # fmt: skip
    assert [each.tags for each in read_texts(paired)] == [("1",), ("0",)]
    lines = write(tmp_path / "c.txt", "nur Text\nnoch einer\n")
    assert [each.words for each in read_texts(lines, labelled=False)] == [
        ("nur", "Text"), ("noch", "einer")
    ]  # fmt: skip
    # Two columns without a label may be a text and its class: only who asks for it gets pairs.
    words = [
        [each.words for each in read_texts(single, labelled=False, pairs=p)] for p in (None, True)
    ]
    assert words[0] == [("gut", "so"), ("schlecht",)]
    assert words[1] == [("gut", "so", PAIR, "pos"), ("schlecht", PAIR, "neg")]


def test_a_line_that_names_the_columns_is_left_out_and_told(tmp_path):
    path = write(tmp_path / "sst.tsv", "\nSentence\tlabel\nfine\t1\nbad\t0\n")
    log = ReadLog()
    assert [each.tags for each in read_texts(path, log=log)] == [("1",), ("0",)]
    assert "names the columns" in log.notes[0]
    with pytest.raises(CorpusError, match="line 4: 1 column in 'x'"):
        list(read_texts(write(path, "\nsentence\tlabel\nfine\t1\nx\n")))
    with pytest.raises(CorpusError, match="nothing stands below"):
        list(read_texts(write(path, "sentence\tlabel\n")))


def test_a_class_with_a_colon_is_no_language_unless_all_are(tmp_path):
    path = write(tmp_path / "x.tsv", "eins\ten:1\nzwei\tother\n")
    assert [(each.language, each.tags) for each in read_texts(path)] == [
        ("und", ("en:1",)), ("und", ("other",))
    ]  # fmt: skip
    write(path, "eins\ten:1\nzwei\tqq:2\n")
    assert [each.tags for each in read_texts(path)] == [("en:1",), ("qq:2",)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gut\t1\nschlecht\nso\t0\n", "line 2: 1 column in 'schlecht'; expected text<TAB>class"),
        ("a\tb\t1\nc\t0\n", "line 2: 2 columns in .*; expected text<TAB>text<TAB>class"),
        ("gut\t1\n \t0\nso\t0\n", "line 2: no text"),
        ("gut\t\n", "line 1: no class"),
        ("a\tb\t1\n\u200b\tc\t1\n", "line 2: no text in column 1"),
        ("nur Text\nohne Klasse\n", "line 1: 1 column"),
        ("\n\n", "the file is empty"),
    ],
)
def test_a_fault_names_file_and_line(tmp_path, text, complaint):
    path = write(tmp_path / "bad.tsv", text)
    with pytest.raises(CorpusError, match=complaint) as caught:
        list(read_texts(path))
    assert str(path) in str(caught.value)


def test_faults_are_counted_where_they_may_be(tmp_path):
    path = tmp_path / "bad.tsv"
    path.write_bytes("gut\t1\nschlecht\nschön\t0\n".encode() + "grün\t1\n".encode("latin-1"))
    log = ReadLog()
    found = list(read_texts(path, on_mismatch="skip", log=log))
    assert [each.words for each in found] == [("gut",), ("schön",)]
    assert log.skipped == 2
    assert "line 4: bytes that are not UTF-8" in log.skipped_places[1]
    with pytest.raises(ValueError, match="format is 'conll'; expected one of auto, tsv, datasets"):
        read_texts(path, format="conll")


def test_unknown_classes_are_named_and_can_be_renamed(tmp_path):
    path = write(tmp_path / "x.tsv", "gut\tpos\nschlecht\tnegative\n")
    known = ClassSet(("neg", "pos"))
    with pytest.raises(CorpusError, match="line 2: class 'negative' is none of neg, pos"):
        list(read_texts(path, tagset=known))
    found = read_texts(path, tagset=known, tag_map={"negative": "neg"})
    assert [each.tags for each in found] == [("pos",), ("neg",)]


TABLE = {"premise": ["a b", "c"], "hypothesis": ["d", "e f"], "label": [1, 0], "lang": ["de", "fr"]}
NAMES = datasets.Features(
    premise=datasets.Value("string"), hypothesis=datasets.Value("string"),
    label=datasets.ClassLabel(names=["no", "yes"]), lang=datasets.Value("string"),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["disk", "parquet", "json", "loaded"])
@pytest.mark.parametrize("named", [True, False])
def test_data_sets(tmp_path, kind, named):
    table = datasets.Dataset.from_dict(TABLE, features=NAMES if named else None)
    source = tmp_path / "data"
    if kind == "disk":
        datasets.DatasetDict(train=table).save_to_disk(str(source))
    elif kind == "parquet":
        source.mkdir()
        table.to_parquet(source / "train.parquet")
    elif kind == "json":
        source.mkdir()
        rows = [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)]
        (source / "train.json").write_text("\n".join(map(json.dumps, rows)))
    else:
        source = table
    labels = ["yes", "no"] if named and kind != "json" else ["1", "0"]
    assert list(read_texts(source)) == [
        Sentence(("a", "b", PAIR, "d"), (labels[0],), "de"),
        Sentence(("c", PAIR, "e", "f"), (labels[1],), "fr"),
    ]
    assert [each.tags for each in read_texts(source, labelled=False)] == [None, None]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"words": ["a"], "label": [1]}, "the columns are words, label; expected text"),
        ({"text": ["a"]}, "expected text .* and label"),
        ({"text": ["a", None], "label": ["x", "y"]}, "row 2: no text"),
        ({"text": ["a", "b"], "label": ["x", None]}, "row 2: no class"),
        ({"text": ["a", "b"], "label": [1.0, 3.8]}, "row 2: label 3.8 is a measure"),
    ],
)
def test_a_table_that_will_not_do(columns, complaint):
    with pytest.raises(CorpusError, match=complaint):
        list(read_texts(datasets.Dataset.from_dict(columns)))


def test_whole_numbers_are_the_same_classes_in_any_type():
    """A table with a missing label has floats."""
    for labels in ([1, 0], [1.0, 0.0], ["1", "0"]):
        table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels})
        assert [each.tags for each in read_texts(table)] == [("1",), ("0",)]


def test_a_class_without_a_label_in_a_data_set():
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    log = ReadLog()
    assert [each.tags for each in read_texts(table, on_mismatch="skip", log=log)] == [("yes",)]
    assert log.skipped_places == ["Dataset, row 2: no class: its cell is empty"]


def test_a_corpus_of_pairs_with_integers(tmp_path):
    train = write(tmp_path / "train.tsv", "a\tb\t10\nc\td\t2\ne\tf\t2\n")
    dev = write(tmp_path / "dev.tsv", "c\td\t10\n")
    test = write(tmp_path / "test.tsv", "g\th\t2\n")
    more = write(tmp_path / "more.tsv", "i\tj\nc\td\n")
    spec = DataSpec(str(train), str(dev), str(test), (str(more),), task="classification")
    corpus = load_corpus(spec)
    assert corpus.tagset == ClassSet(("2", "10"))
    assert [sentence.tags for sentence in corpus.train] == [("10",), ("2",), ("2",)]
    assert {sentence.tags for sentence in corpus.transfer} == {None}
    assert [" ".join(each.words) for each in corpus.transfer] == [
        f"a {PAIR} b", f"e {PAIR} f", f"i {PAIR} j"
    ]  # fmt: skip
    assert corpus.log.dropped == 2
    assert load_test(spec, tagset=corpus.tagset)[0].tags == ("2",)
    write(dev, "c\t10\n")
    with pytest.raises(CorpusError, match=r"2 columns .* expected text<TAB>text<TAB>class"):
        load_corpus(spec)
    write(dev, "c\td\t3\n")
    with pytest.raises(CorpusError, match="class '3' is none of 2, 10"):
        load_corpus(spec)


def test_the_order_of_classes_can_be_given(tmp_path):
    train = write(tmp_path / "train.tsv", "a\tno\nb\tyes\n")
    dev = write(tmp_path / "dev.tsv", "c\tyes\n")
    spec = DataSpec(str(train), str(dev), types=("yes", "no", "maybe"), task="classification")
    assert load_corpus(spec).tagset == ClassSet(("yes", "no", "maybe"))


def test_too_few_and_too_many_classes():
    one = [Sentence(("a",), ("x",), "en")] * 2
    with pytest.raises(CorpusError, match=r"has 1 classes \(x\); expected 2 to 128"):
        classes_of(one)
    many = [Sentence(("a",), (f"text {number}",), "en") for number in range(1234)]
    with pytest.raises(CorpusError, match=r"1,234 classes .* in the last column"):
        classes_of(many)


def test_the_embedded_corpus_is_classified_by_its_language():
    corpus = load_corpus(DataSpec(synthetic=True, languages=("de", "ta"), task="classification"))
    assert corpus.tagset == ClassSet(("de", "ta"))
    assert all(each.tags == (each.language,) for each in (*corpus.train, *corpus.dev))
    assert all(each.tags is None for each in corpus.transfer)
