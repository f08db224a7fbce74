"""What the page is told of splitter and tokenizer is what they do, to each character there is."""

import json
import random
import re

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers

from tests.deploy.nasty import NASTY
from tests.deploy.toys import TOKENIZER
from xdistil_jax.data.tokenizer import Tokenizer
from xdistil_jax.deploy import steps
from xdistil_jax.text import Word, split_words

BACKEND = tokenizers.Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))
PLANES = st.text(st.characters(codec="utf-8"), max_size=40)


def in_python(pattern):
    """An expression of JavaScript's that has nothing but written-out classes."""
    return re.compile(re.sub(r"\\u\{(\w+)\}", lambda found: rf"\U{found[1]:0>8}", pattern))


@pytest.fixture(scope="module")
def rules():
    return [in_python(each) for each in steps.word_rules().values()]


def split_by(rules, text):
    pattern, visible = rules
    found = [Word(m.group(), m.start(), m.end()) for m in pattern.finditer(text)]
    return [each for each in found if visible.search(each.text)]


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nasty_text_is_split_as_the_splitter_does(rules, text):
    assert split_by(rules, text) == split_words(text)


@settings(deadline=None)
@given(text=PLANES)
def test_any_text_is_split_as_the_splitter_does(rules, text):
    assert split_by(rules, text) == split_words(text)


def test_the_patterns_ask_nothing_of_the_reader():
    """No \\w, \\d or \\s is left, of which every language has its own."""
    pattern, visible = steps.word_rules().values()
    assert set(re.findall(r"\\(\w)", pattern + visible)) == {"u"}


def within(ranges, point):
    return any(first <= point <= last for first, last in zip(*[iter(ranges)] * 2, strict=True))


def changed(step, text):
    def change(char):
        point = ord(char)
        if char in step["others"]:
            return step["others"][char]
        if within(step["gone"], point):
            return ""
        if within(step["space"], point):
            return " "
        return f" {char} " if within(step["padded"], point) else char

    return "".join(map(change, text))


NORMALIZERS = {
    "cased": normalizers.BertNormalizer(lowercase=False),
    "lower-cased": normalizers.BertNormalizer(lowercase=True),
    "lower": normalizers.Lowercase(),
}


def step_of(**parts):
    backend = tokenizers.Tokenizer.from_str(BACKEND.to_str())
    for name, part in parts.items():
        setattr(backend, name, part)
    [step] = steps.tokenizer_facts(Tokenizer(backend, 0, 0, 0, 0))["steps"]
    return step


@pytest.mark.parametrize("name", NORMALIZERS)
def test_characters_change_as_the_normaliser_changes_them(name):
    step = step_of(normalizer=NORMALIZERS[name])
    for text in NASTY.values():
        text = text[:300].encode(errors="ignore").decode()
        assert changed(step, text) == NORMALIZERS[name].normalize_str(text)


@settings(deadline=None)
@given(text=PLANES)
def test_any_character_changes_as_the_normaliser_changes_it(text):
    step = step_of(normalizer=NORMALIZERS["cased"])
    assert changed(step, text) == NORMALIZERS["cased"].normalize_str(text)


SPLITTERS = {
    "bert": pre_tokenizers.BertPreTokenizer(),
    "spaces": pre_tokenizers.WhitespaceSplit(),
    "marks": pre_tokenizers.Punctuation(),
}


@pytest.mark.parametrize("name", SPLITTERS)
def test_characters_part_as_the_splitter_parts_them(name):
    step = step_of(pre_tokenizer=SPLITTERS[name])
    draw = random.Random(0)
    for text in NASTY.values():
        text = text[:300].encode(errors="ignore").decode()
        text += "".join(chr(draw.randrange(0xE000, 0x20000)) for _ in range(300))
        parts = [""]
        for char in text:
            if within(step["gone"], ord(char)):
                parts.append("")
            elif within(step["alone"], ord(char)):
                parts += [char, ""]
            else:
                parts[-1] += char
        expected = [part for part, _ in SPLITTERS[name].pre_tokenize_str(text)]
        assert list(filter(None, parts)) == expected


def test_all_of_a_tokenizer_can_be_written_as_json():
    facts = json.loads(json.dumps(steps.tokenizer_facts(TOKENIZER)))
    vocabulary = TOKENIZER.backend.get_vocab()
    assert {piece: n for n, piece in enumerate(facts["model"]["pieces"])} == vocabulary
    assert (facts["first"], facts["last"]) == (TOKENIZER.cls_id, TOKENIZER.sep_id)
    assert facts["unknown"] == facts["model"]["unknown"] == TOKENIZER.unk_id


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"normalizer": normalizers.ByteLevel()}, "normaliser .*ByteLevel"),
        ({"normalizer": normalizers.Replace(Regex("(?<=a)b"), "c")}, "normaliser .*Replace"),
        ({"pre_tokenizer": pre_tokenizers.Digits()}, "pre-tokenizer .*Digits"),
        ({"pre_tokenizer": pre_tokenizers.Punctuation("removed")}, "pre-tokenizer .*Removed"),
        ({"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first")}, "Metaspace"),
        ({"model": models.BPE({"a": 0}, [], unk_token="a")}, "a BPE tokenizer"),
    ],
)
def test_what_the_page_can_not_do_is_refused(parts, said):
    with pytest.raises(ValueError, match=f"can't cut words with.*{said}.*--student.tokenizer"):
        step_of(**parts)


def test_pieces_that_were_added_are_refused():
    backend = tokenizers.Tokenizer.from_str(BACKEND.to_str())
    backend.add_tokens(["Anna Berg"])
    with pytest.raises(ValueError, match="the added piece 'Anna Berg'"):
        steps.tokenizer_facts(Tokenizer(backend, 0, 0, 0, 0))
