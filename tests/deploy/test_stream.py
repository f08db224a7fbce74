"""Lines in, JSON lines out: in order, at once when input pauses, each mistake with its number."""

import io
import json
import os

import pytest

from tests.deploy.test_tagger import NASTY
from tests.deploy.toys import save_toy
from xdistil_jax.deploy.stream import answer, blocks
from xdistil_jax.deploy.tagger import Tagger

TEXT = "Anna Berg fuhr nach Berlin."


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream") / "student"
    save_toy(folder)
    return Tagger.load(folder)


def lines(tagger, content, **options):
    batches = answer(tagger, blocks(io.BytesIO(content)), **options)
    return [json.loads(line) for batch in batches for line in batch]


def shown(found):
    return [{**each._asdict(), "score": round(each.score, 4)} for each in found]


def test_text_is_answered_line_by_line(tagger):
    texts = [text.replace("\n", " ") for text in NASTY if "\ud800" not in text] * 40
    found = lines(tagger, "\r\n".join(texts).encode(), form="text")
    assert [each["text"] for each in found] == texts
    assert [each["entities"] for each in found] == [shown(each) for each in tagger(texts)]


def test_json_keeps_its_fields(tagger):
    given = [
        {"id": 7, "text": TEXT, "meta": {"a": [1, None]}},
        {"words": TEXT.split(), "id": "x"},
        {"text": ""},
        {"words": []},
        {"text": "lone \ud800 Anna"},
    ]
    found = lines(tagger, "\n\n".join(map(json.dumps, given)).encode() + b"\n")
    assert [{**each, "entities": 0} for each in found] == [
        {**each, "entities": 0} for each in given
    ]
    assert found[0]["entities"] == shown(tagger(TEXT))
    assert found[1]["entities"] == shown(tagger.tag_words([TEXT.split()])[0]) != []
    words = lines(tagger, json.dumps(given[0]).encode(), aggregate="none")[0]
    assert words["tagged"] == shown(tagger(TEXT, "none"))


def test_every_line_is_one_line_and_utf_8(tagger):
    given = [json.dumps({"text": text, "x": text}) for text in NASTY]
    batches = answer(tagger, blocks(io.BytesIO("\n".join(given).encode())))
    out = [line for batch in batches for line in batch]
    assert len(out) == len(NASTY)
    assert not any(set(line.encode().decode()) & set("\n\r") for line in out)
    assert any("Москва" in line for line in out)


@pytest.mark.parametrize(
    ("first", "form"),
    [('{"text": "a"}', "json"), ("[1]", "text"), ("{", "text"), ("", "text"), ("12", "text")],
)
def test_the_first_line_says_what_all_are(tagger, first, form):
    second = '{"text": "Anna"}'
    found = lines(tagger, f"\ufeff{first}\n{second}".encode())
    assert found[-1]["text"] == ("Anna" if form == "json" else second)
    assert found[0]["text"] == ("a" if form == "json" else first)


MISTAKES = [
    (b"\xe4", "expected UTF-8"),
    (b"no json", "expected a JSON object (Expecting value"),
    (b"[1]", "expected a JSON object with a field text"),
    (b"{}", "expected a JSON object with a field text"),
    (b'{"text": "a", "words": []}', "expected a JSON object with a field text"),
    (b'{"text": 3}', "text: expected a string, found 3"),
    (b'{"words": "a b"}', "words: expected a list of strings, found 'a b'"),
    (b'{"words": ["a", 1]}', "words: expected a list of strings"),
    (b'{"words": ["\\ud800"]}', "words: expected a list of strings"),
    (b'{"text": "a", "x": NaN}', "NaN is no JSON"),
    (b'{"text": "a", "x": ' + b"[" * 100_000, "expected a JSON object"),
]


@pytest.mark.parametrize(("bad", "said"), MISTAKES)
def test_a_bad_line_is_named_and_skipped_or_the_end(tagger, bad, said):
    good = json.dumps({"text": TEXT}).encode()
    content = b"\n".join([good, bad, good])
    told = []
    found = lines(tagger, content, form="json", skip=told.append)
    assert len(found) == 2
    assert told[0].startswith("stdin, line 2: ")
    assert said in told[0]
    assert len(told) == 1
    batches = answer(tagger, blocks(io.BytesIO(content)))
    assert [json.loads(line)["text"] for line in next(batches)] == [TEXT]
    with pytest.raises(ValueError, match="stdin, line 2: "):
        next(batches)


def test_a_line_is_answered_before_the_next_one_is_there(tagger):
    """And what is there already is one batch."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        found = answer(tagger, blocks(stream))
        for text in ("Anna Berg", "nach Berlin"):
            os.write(writing, f"{text}\n".encode())
            assert [json.loads(line)["text"] for line in next(found)] == [text]
        os.write(writing, b"one\ntwo\nthr")
        assert [json.loads(line)["text"] for line in next(found)] == ["one", "two"]
        os.write(writing, b"ee\nfour")
        assert [json.loads(line)["text"] for line in next(found)] == ["three"]
        os.close(writing)
        assert [json.loads(line)["text"] for line in next(found)] == ["four"]
        assert next(found, None) is None


def test_batches_are_bounded(tagger):
    many = b"Anna\n" * 1000 + b"Berlin " * 40_000 + b"\n" + b"Anna\n" * 2
    sizes = [len(batch) for batch in answer(tagger, blocks(io.BytesIO(many))) if batch]
    assert sum(sizes) == 1003
    assert max(sizes) == 256
    assert len(sizes) >= 5
    # The long line ends the batch that it stands in, and no other.
    assert sizes[-1] == 2
