"""Readers: what is written in any format comes back, and what is wrong is named by line."""

import gzip
import json
import sys

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xdistil_jax.data import tables
from xdistil_jax.data.formats import detect
from xdistil_jax.data.readers import ReadLog, Sentence, read
from xdistil_jax.data.sources import CorpusError, language_of, split_files
from xdistil_jax.labels import TagSet, repair, spans
from xdistil_jax.text import words_of

TMP = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
# No separators of the formats; a token may hold anything else, line separators of Unicode included.
WORDS = st.text(st.characters(exclude_characters=" \t\n\r", exclude_categories=["Cs"]), min_size=1)
CLEAN = WORDS.filter(lambda word: ":" not in word and word != "-DOCSTART-" and "\ufeff" not in word)


@st.composite
def corpora(draw, least=1):
    """Sentences with valid tags, the first of at least two words."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        words = tuple(draw(st.lists(CLEAN, min_size=1 if number else 2, max_size=5)))
        tags = draw(st.lists(TAGS, min_size=len(words), max_size=len(words)))
        found.append(Sentence(words, repair(tags)[0], draw(st.sampled_from(["en", "zh-min-nan"]))))
    return found


def _conll(between, *extra):
    def write(sentences):
        rows = (
            "".join(
                f"{between.join([w, *extra, t])}\n" for w, t in zip(s.words, s.tags, strict=True)
            )
            for s in sentences
        )
        return "-DOCSTART- -X- O\n\n" + "\n".join(rows)

    return write


def _mmner(sentences):
    return "\n".join(
        "".join(f"{s.language}:{w}\t{t}\n" for w, t in zip(s.words, s.tags, strict=True))
        for s in sentences
    )


def _tsv(prefixed):
    def write(sentences):
        lines = []
        for sentence in sentences:
            tags = list(sentence.tags)
            for place in range(min(prefixed, len(tags))):
                tags[place] = f"{sentence.language}:{tags[place]}"
            lines.append(f"{' '.join(sentence.words)}\t{' '.join(tags)}\n")
        return "".join(lines)

    return write


WRITERS = {
    "conll-tab": ("conll", _conll("\t"), False),
    "conll-space": ("conll", _conll(" "), False),
    "conll-columns": ("conll", _conll("\t", "NN", "_"), False),
    "mmner": ("mmner", _mmner, True),
    "tsv-every": ("tsv", _tsv(99), True),
    "tsv-first": ("tsv", _tsv(1), True),
    "tsv-none": ("tsv", _tsv(0), False),
}


@pytest.mark.parametrize("name", WRITERS)
@TMP
@given(corpora(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_what_is_written_is_read(tmp_path, name, sentences, named, crlf, bom, zipped):
    format, write, tells = WRITERS[name]
    data = write(sentences)
    data = data.replace("\n", "\r\n") if crlf else data
    data = ("\ufeff" + data if bom else data).encode()
    path = tmp_path / "data.txt"
    path.write_bytes(gzip.compress(data) if zipped else data)
    log = ReadLog()
    found = list(read(path, format=format if named else "auto", language="xx", log=log))
    assert found == [s if tells else s._replace(language="xx") for s in sentences]
    assert (log.sentences, log.repaired, log.skipped) == (len(sentences), 0, 0)


@TMP
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_text_is_read_by_the_line(tmp_path, lines):
    lines = [line.replace("\n", "").replace("\r", "").replace("\ufeff", "") for line in lines]
    expected = [Sentence(words_of(line), None, "und") for line in lines if words_of(line)]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    if expected:
        assert list(read(path, format="text")) == expected
    else:
        with pytest.raises(CorpusError, match="no usable sentence"):
            list(read(path, format="text"))


@TMP
@given(st.lists(TAGS, min_size=1, max_size=8))
def test_stray_tags_are_repaired_and_counted(tmp_path, tags):
    path = tmp_path / "data.txt"
    path.write_text("".join(f"w\t{tag}\n" for tag in tags))
    log = ReadLog()
    (sentence,) = read(path, log=log)
    assert spans(sentence.tags) == spans(tags)
    assert (sentence.tags, log.repaired) == repair(tags)


def _file(tmp_path, data):
    path = tmp_path / "bad.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


GOOD = "a\tO\nb\tB-PER\n\n"
BAD = [
    ("conll", GOOD + "c\tO\nd\n\n", 5, "no tag"),
    ("conll", GOOD + "c\tO\n\tO\n\n", 5, "no token"),
    ("conll", GOOD + "c\tO\nd\tX-PER\n", 5, "'X-PER'"),
    ("conll", GOOD + "c\tO\nd\tB-MISC\n", 5, "'B-MISC'"),
    ("conll", GOOD.encode() + b"c\tO\n\xe9\tO\n", 5, "UTF-8"),
    ("conll", GOOD.encode() + b"\xff\n", 4, "UTF-8"),
    ("mmner", "en:a\tO\nen:b\tO\n\nen:c\tO\nd\tO\n", 5, "no language"),
    ("tsv", "a b\tO B-PER\n\nc d\tO\n", 3, "2 tokens but 1 tags"),
    ("tsv", "a b\tO B-PER\n\nc d O\n", 3, "no tags"),
    ("tsv", "a b\tO B-PER\nc d\tO B-MISC\n", 2, "'B-MISC'"),
    ("text", b"one\ntwo\n\xff\xfe\nfour\n", 3, "UTF-8"),
    ("text", b"one\ncaf\xe9 noir\r\n", 2, "UTF-8"),
]


@pytest.mark.parametrize(("format", "data", "line", "problem"), BAD)
@pytest.mark.parametrize("auto", [False, True])
def test_what_is_wrong_is_named_or_skipped_and_counted(tmp_path, format, data, line, problem, auto):
    path = _file(tmp_path, data)
    options = {"format": "auto" if auto else format, "tagset": TagSet(("PER",))}
    with pytest.raises(CorpusError) as error:
        list(read(path, **options))
    assert f"{path}, line {line}: " in str(error.value)
    assert problem in str(error.value)
    assert "on_mismatch=skip" in str(error.value)
    log = ReadLog()
    found = list(read(path, on_mismatch="skip", log=log, **options))
    assert 1 <= len(found) == log.sentences
    assert log.skipped == 1
    assert f"line {line}: " in log.skipped_places[0]


def test_every_bad_sentence_is_counted_and_few_are_named(tmp_path):
    path = _file(tmp_path, "a b\tO O\n" + "c d\tO\n" * 20)
    log = ReadLog()
    assert len(list(read(path, on_mismatch="skip", log=log))) == 1
    assert log.skipped == 20
    assert len(log.skipped_places) == 5


@pytest.mark.parametrize("data", ["", "\ufeff", "\n\n \n", "-DOCSTART- -X- O\n\n"])
@pytest.mark.parametrize("format", ["auto", "conll"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_without_sentences_is_an_error(tmp_path, data, format, zipped):
    path = _file(tmp_path, gzip.compress(data.encode()) if zipped else data)
    with pytest.raises(CorpusError, match=r"bad\.txt: (the file is empty|no usable sentence)"):
        list(read(path, format=format))


def test_a_file_of_which_all_is_skipped_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match=r"first problem.*line 1"):
        list(read(_file(tmp_path, "a\tS-PER\n"), on_mismatch="skip"))


def test_damaged_gzip_is_named(tmp_path):
    path = _file(tmp_path, gzip.compress(GOOD.encode() * 1000)[:-20])
    with pytest.raises(CorpusError, match=r"bad\.txt.*damaged gzip"):
        list(read(path))


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "train.txt").write_text(GOOD)
    with pytest.raises(CorpusError, match=r"trian\.txt: no such file; .* holds train\.txt"):
        read(tmp_path / "trian.txt")
    with pytest.raises(CorpusError, match="write hf:"):
        read(tmp_path / "owner" / "name")


def test_tag_map_renames_types_after_the_repair(tmp_path):
    path = _file(tmp_path, "a\tI-LOC\nb\tI-GPE\nc\tI-MISC\nd\tI-PER\n")
    (sentence,) = read(path, tag_map={"MISC": "O", "GPE": "LOC"}, tagset=TagSet(("LOC", "PER")))
    assert sentence.tags == ("B-LOC", "B-LOC", "O", "B-PER")


def test_limit_reads_no_further(tmp_path):
    path = _file(tmp_path, GOOD + "c\n")
    assert [sentence.words for sentence in read(path, limit=1)] == [("a", "b")]
    assert list(read(path, limit=0)) == []


@pytest.mark.parametrize("option", ["format", "on_mismatch", "split"])
def test_options_are_checked(tmp_path, option):
    with pytest.raises(ValueError, match=f"{option} is 'x'; expected one of"):
        read(_file(tmp_path, GOOD), **{option: "x"})


def test_plain_text_that_looks_a_little_like_columns_is_text():
    assert detect(["Vitamin B-12", "Der Hund", "", "Noch ein Satz\tmit Tab"]) == "text"
    assert detect([]) == "text"


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("/d/wikiann/en/train.txt", "en"),
        ("unlabelled/ta.txt.gz", "ta"),
        ("/d/ceb/dev.txt", "ceb"),
        ("/tmp/dev.txt", ""),
        ("/d/all.txt", ""),
    ],
)
def test_language_of_a_path(path, language):
    assert language_of(path) == language


def test_two_files_for_one_split_are_refused(tmp_path):
    (tmp_path / "train.txt").touch()
    (tmp_path / "validation-00000-of-00002.parquet").touch()
    (tmp_path / "validation-00001-of-00002.parquet").touch()
    assert [path.name for path in split_files(tmp_path, "train")] == ["train.txt"]
    assert len(split_files(tmp_path, "dev")) == 2
    assert split_files(tmp_path, "test") == []
    (tmp_path / "train.txt.gz").touch()
    with pytest.raises(CorpusError, match=r"train\.txt and train\.txt\.gz both claim"):
        split_files(tmp_path, "train")


FEATURES = datasets.Features(
    {
        "tokens": datasets.Sequence(datasets.Value("string")),
        "ner_tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-PER", "I-PER"])),
        "langs": datasets.Sequence(datasets.Value("string")),
    }
)
SENTENCES = [Sentence(("a", "b"), ("B-PER", "I-PER"), "en"), Sentence(("c",), ("O",), "de")]


def _dataset(tags=((1, 2), (0,))):
    columns = {"tokens": [["a", "b"], ["c"]], "ner_tags": tags, "langs": [["en", "en"], ["de"]]}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def test_loaded_data_set_is_read():
    assert list(read(_dataset())) == SENTENCES


def test_local_folders_and_tables_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "parquet").mkdir()
    shards = [tmp_path / "parquet" / f"train-0000{n}-of-00002.parquet" for n in range(2)]
    for shard in shards:
        _dataset().to_parquet(shard)
    datasets.DatasetDict({"train": _dataset(), "validation": _dataset()}).save_to_disk(
        tmp_path / "saved"
    )
    rows = [{"tokens": s.words, "ner_tags": s.tags, "langs": [s.language]} for s in SENTENCES]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    for path in (shards[0], *map(tmp_path.joinpath, ("rows.jsonl", "rows.json.gz", "list.json"))):
        assert list(read(path)) == SENTENCES
    assert list(read(tmp_path / "parquet")) == SENTENCES * 2
    assert list(read(tmp_path / "saved", split="dev")) == SENTENCES
    assert list(read(tmp_path / "saved" / "train")) == SENTENCES
    with pytest.raises(CorpusError, match="no test split; it holds dataset_dict"):
        read(tmp_path / "saved", split="test")
    assert not (tmp_path / "cache").exists()


def test_table_complaints_name_the_row(tmp_path):
    path = tmp_path / "rows.json"
    good = {"tokens": ["a"], "ner_tags": ["O"]}
    for bad, problem in [
        ({"tokens": ["a"], "ner_tags": ["O", "O"]}, "1 tokens but 2 tags"),
        ({"tokens": ["a", ""], "ner_tags": ["O", "O"]}, "an empty token"),
        ({"tokens": [], "ner_tags": []}, "no tokens"),
    ]:
        path.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
        with pytest.raises(CorpusError, match=rf"rows\.json, row 2: {problem}"):
            list(read(path))
        assert len(list(read(path, on_mismatch="skip"))) == 1
    path.write_text(json.dumps({"tokens": ["a"], "ner_tags": [1]}))
    with pytest.raises(CorpusError, match="numbers and nothing names them"):
        list(read(path))
    with pytest.raises(CorpusError, match=r"row 1: tag number -1 has no name"):
        list(read(_dataset([[-1, 0], [0]])))
    with pytest.raises(CorpusError, match="the columns are text; expected tokens and ner_tags"):
        read(datasets.Dataset.from_dict({"text": ["a"]}))


def test_hub_name_is_loaded_by_its_configuration_and_split(monkeypatch):
    asked = []

    def load(path, config, split):
        asked.append((path, config, split))
        return _dataset().remove_columns("langs")

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["train", "validation"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    found = list(read("hf:owner/wikiann:en", split="dev"))
    assert asked == [("owner/wikiann", "en", "validation")]
    assert found == [sentence._replace(language="en") for sentence in SENTENCES]
    with pytest.raises(CorpusError, match="no test split; it has train, validation"):
        read("hf:owner/wikiann:en", split="test")


def test_without_datasets_the_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'xdistil_jax\[train\]'"):
        tables.rows("hf:owner/name", "train")
