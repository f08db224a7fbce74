"""Transfer text from a local Wikipedia: what is taken, what is left out, and going on."""

import json
from dataclasses import replace

import datasets
import pytest

from xdistil_jax import cli
from xdistil_jax.data import tables, transfer
from xdistil_jax.data.corpus import CorpusError, DataSpec, load_corpus
from xdistil_jax.data.transfer import TransferSpec, make_transfer


def article(number, text):
    return {"id": str(number), "url": f"u{number}", "title": f"t{number}", "text": text}


def one(number):
    return f"Im Artikel {number} steht ein Satz."


def two(number):
    return f"Im Artikel {number} steht noch einer!"


def text_of(number):
    return (
        f"Titel {number}\n\n{one(number)} {two(number)}\nDas steht in jedem Artikel. Kurz.\n\n"
        "Siehe auch\nListe ohne Ende und ohne Punkt"
    )


@pytest.fixture(scope="module")
def wikipedia(tmp_path_factory):
    """A folder as wikimedia/wikipedia lies on the hub: de in two shards of parquet, ru in arrow."""
    root = tmp_path_factory.mktemp("wikipedia")
    german = [article(number, text_of(number)) for number in range(30)]
    for shard in range(2):
        table = datasets.Dataset.from_list(german[shard::2])
        table.to_parquet(root / f"20231101.de/train-0000{shard}-of-00002.parquet")
    russian = [
        article(number, f"Это предложение номер {number} здесь. Хвост") for number in range(5)
    ]
    table = datasets.Dataset.from_list(russian)
    table.save_to_disk(root / "20231101.ru")
    return root


@pytest.fixture
def spec(wikipedia, tmp_path):
    return TransferSpec(("de", "ru"), str(tmp_path / "out"), source=str(wikipedia), min_words=3)


def quiet(message):
    """Nothing."""


def lines(folder, code):
    return (folder / f"{code}.txt").read_text(encoding="utf-8").splitlines()


def test_sentences_are_taken_once_without_headings(spec, tmp_path):
    manifest = make_transfer(spec, say=quiet)
    out = tmp_path / "out"
    german = lines(out, "de")
    wanted = {make(number) for number in range(30) for make in (one, two)}
    assert set(german) == wanted | {"Das steht in jedem Artikel."}
    assert len(german) == 61
    assert sorted(lines(out, "ru")) == [f"Это предложение номер {n} здесь." for n in range(5)]
    assert json.loads((out / "manifest.json").read_text()) == manifest
    entry = manifest["languages"]["de"]
    counts = {"sentences": 61, "articles": 30, "length": 30, "repeated": 29, "apart": 0}
    assert {name: entry[name] for name in counts} == counts
    assert len(entry["revision"].split()) == 2
    assert (manifest["settings"]["source"], manifest["settings"]["seed"]) == (spec.source, 0)
    assert manifest["settings"]["snapshot"] == "20231101"


def test_what_comes_out_is_read_as_transfer_text(spec, tmp_path):
    make_transfer(spec, say=quiet)
    for split in ("train", "dev"):
        (tmp_path / split / "de").mkdir(parents=True)
        (tmp_path / f"{split}.txt").write_text(f"Ulm{split}\tB-LOC\n")
    data = DataSpec(
        str(tmp_path / "train.txt"), str(tmp_path / "dev.txt"), languages=("de",),
        unlabelled_root=str(tmp_path / "out"), train_as_transfer=False,
    )  # fmt: skip
    found = load_corpus(data).transfer
    assert len(found) == 61
    assert {sentence.language for sentence in found} == {"de"}


def test_dev_and_test_are_kept_apart_however_they_are_cut(spec, tmp_path):
    (tmp_path / "root" / "de").mkdir(parents=True)
    for split, number in (("train", 3), ("dev", 4), ("test", 5)):
        # Cut otherwise than our splitter cuts.
        text = "".join(f"{word}\tO\n" for word in one(number).split())
        (tmp_path / "root" / "de" / f"{split}.txt").write_text(text)
    plain = tmp_path / "plain.txt"
    plain.write_text(f"{two(6)}\n")
    data = DataSpec(root=str(tmp_path / "root"))
    spec = replace(spec, languages=("de",), apart_from=(str(plain),), data=data)
    manifest = make_transfer(spec, say=quiet)
    german = set(lines(tmp_path / "out", "de"))
    assert one(3) in german, "train may be transfer text"
    assert not german & {one(4), one(5), two(6)}
    assert manifest["languages"]["de"]["apart"] == 3


def test_of_a_data_set_on_the_hub_the_same_languages_are_kept_apart(spec, tmp_path, monkeypatch):
    def load(path, configuration, split):
        asked.append((path, configuration, split))
        words = one({"validation": 4, "test": 5}[split]).split()
        return datasets.Dataset.from_list([{"tokens": words, "ner_tags": ["O"] * len(words)}])

    asked, said = [], []
    names = ["train", "validation", "test"]
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: names)
    monkeypatch.setattr(datasets, "load_dataset", load)
    data = DataSpec(root="hf:owner/wikiann")
    make_transfer(replace(spec, languages=("de",), data=data), say=said.append)
    assert asked == [("owner/wikiann", "de", split) for split in names[1:]]
    assert not set(lines(tmp_path / "out", "de")) & {one(4), one(5)}
    assert not [line for line in said if "no dev or test" in line]


@pytest.mark.parametrize("per_article", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_limits_hold_and_the_seed_decides(spec, tmp_path, per_article):
    spec = replace(spec, languages=("de",), per_language=7, per_article=per_article)
    made = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        make_transfer(replace(spec, out=str(tmp_path / name), seed=seed), say=quiet)
        made[name] = lines(tmp_path / name, "de")
    assert made["one"] == made["again"] != made["two"]
    assert len(set(made["one"])) == 7
    articles = [line.split()[2] for line in made["one"] if line[:2] == "Im"]
    assert (len(set(articles)) == len(articles)) == bool(per_article)


def test_a_stopped_command_goes_on_with_what_is_missing(spec, tmp_path, monkeypatch):
    real, asked = tables.articles, []

    def articles(source, configuration, **options):
        asked.append(configuration)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(source, configuration, **options)

    monkeypatch.setattr(transfer.tables, "articles", articles)
    with pytest.raises(KeyboardInterrupt):
        make_transfer(spec, say=quiet)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["de.txt", "manifest.json"]
    before = lines(out, "de")
    make_transfer(spec, say=quiet)
    assert asked == ["20231101.de", "20231101.ru", "20231101.ru"]
    (out / "de.txt").write_text("somebody's own\n")
    make_transfer(spec, say=quiet)
    assert asked[3:] == ["20231101.de"]
    assert lines(out, "de") == before
    make_transfer(replace(spec, languages=("ru,de",)), say=quiet)
    assert len(asked) == 4


def test_a_folder_that_was_begun_otherwise_is_refused(spec):
    make_transfer(replace(spec, languages=("ru",)), say=quiet)
    with pytest.raises(CorpusError, match=r"was begun with seed 0, and now seed is 5: choose"):
        make_transfer(replace(spec, seed=5), say=quiet)
    with pytest.raises(CorpusError, match="was begun with data"):
        make_transfer(replace(spec, data=DataSpec(dev="x")), say=quiet)


def test_complaints_say_what_is_there(spec, wikipedia, tmp_path):
    with pytest.raises(CorpusError, match=r"holds 20231101.de, 20231101.ru; expected 20231101.fr"):
        make_transfer(replace(spec, languages=("fr",)), say=quiet)
    with pytest.raises(CorpusError, match="name at least one language"):
        make_transfer(replace(spec, languages=(",",)), say=quiet)
    with pytest.raises(CorpusError, match=r"20231101.ru: no sentence can be used"):
        make_transfer(replace(spec, languages=("ru",), min_words=90), say=quiet)
    other = tmp_path / "other"
    datasets.Dataset.from_list([{"words": "x"}]).to_parquet(other / "20231101.de/train.parquet")
    with pytest.raises(CorpusError, match="the columns are words; expected text"):
        make_transfer(replace(spec, source=str(other)), say=quiet)
    (other / "20231101.de/train.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(CorpusError, match="the data set can't be read"):
        make_transfer(replace(spec, source=str(other)), say=quiet)
    (tmp_path / "out" / "manifest.json").write_text("[]")
    with pytest.raises(CorpusError, match="no manifest of transfer text"):
        make_transfer(spec, say=quiet)


def test_the_command_says_how_to_go_on(spec, tmp_path, capsys):
    out = str(tmp_path / "out")
    cli.main(["transfer", "--languages", "ru", "--out", out, "--source", spec.source])
    said = capsys.readouterr()
    assert said.out == f"5 sentences. Read them with --data.unlabelled-root {out}\n"
    assert "ru: 5 sentences of 5 articles" in said.err
    assert "no dev or test is given" in said.err


def test_a_hub_name_is_read_at_its_revision(spec, wikipedia, tmp_path, monkeypatch):
    real, asked = datasets.load_dataset_builder, []

    def load(path, configuration, *, revision, cache_dir):
        asked.append((path, configuration, revision))
        folder = wikipedia / configuration
        builder = real("arrow", data_files=[str(folder / "*.arrow")], cache_dir=cache_dir)
        builder.hash = "abc123"
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    spec = replace(spec, source="wikimedia/wikipedia", revision="main", languages=("ru",))
    manifest = make_transfer(spec, say=quiet)
    assert asked == [("wikimedia/wikipedia", "20231101.ru", "main")]
    assert manifest["languages"]["ru"]["revision"] == "abc123"
    assert len(lines(tmp_path / "out", "ru")) == 5
