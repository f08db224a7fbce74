"""The word splitter: nothing visible is lost, and offsets are those of the text."""

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax import text as module
from xdistil_jax.text import split_words, words_of

NASTY = st.sampled_from(
    [
        *"aZ9 _'’.,:-\t\n\r\0\u0301\u20e3\u200b\u200c\u200d\u200e\u200f\u2028\u3000\ufeff\ufe0f",
        *"ßéשلא٣हि्คำ中々カﾊ한🏳🌈👩\u00ad\u00a0\u0085\ue000\U000e0041\U000e0100\ud800",
        "\r\n",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(NASTY).map("".join), st.text(st.characters(categories=["M"])))


def _invisible(char):
    return char.isspace() or unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp")


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_no_visible_character_is_lost_and_offsets_are_right(text):
    words = split_words(text)
    covered = set()
    for word in words:
        assert text[word.start : word.end] == word.text
        assert not any(char.isspace() for char in word.text)
        assert not all(map(_invisible, word.text))
        assert not covered & set(range(word.start, word.end))
        covered |= set(range(word.start, word.end))
    assert words == sorted(words, key=lambda word: word.start)
    assert all(_invisible(char) for place, char in enumerate(text) if place not in covered)


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_words_alone_are_the_same_words_and_go_through_utf8(text):
    words = words_of(text)
    assert words == tuple(word.text for word in split_words(text))
    assert all(word.encode().decode() == word for word in words)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_white_space_cuts(left, right):
    assert words_of(f"{left}\r\n{right}") == words_of(left) + words_of(right)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        ("a\ud800\u0301\x00\u0301", ("a", "\u0301", "\u0301")),
        (" \u200b\u200e\x00 ", ()),
        ("Jeanne d'Arc, O’Neil's.", ("Jeanne", "d'Arc", ",", "O’Neil's", ".")),
        ("1,000.5 at 3:45.", ("1,000.5", "at", "3:45", ".")),
        ("rock 'n' roll", ("rock", "'", "n", "'", "roll")),
        ("हिन्दी भाषा", ("हिन्दी", "भाषा")),
        ("می‌خواهم", ("می‌خواهم",)),
        ("東京はJAXと", ("東", "京", "は", "JAX", "と")),
        ("人々", ("人", "々")),
        ("e\u0301te\u0301!", ("e\u0301te\u0301", "!")),
        ("co\u00adoperate", ("co\u00adoperate",)),
        ("שלום, עולם", ("שלום", ",", "עולם")),
        ("1\ufe0f\u20e3 ok", ("1\ufe0f\u20e3", "ok")),
        ("foo_bar __x", ("foo_bar", "__", "x")),
    ],
)
def test_examples(text, words):
    assert words_of(text) == words


def test_mark_ranges_are_all_marks_of_unicode():
    expected = {p for p in range(sys.maxunicode + 1) if unicodedata.category(chr(p))[0] == "M"}
    ranges = [part.split("-") for part in module._mark_ranges()]
    found = {point for first, last in ranges for point in range(ord(first), ord(last) + 1)}
    assert found == expected


@pytest.mark.parametrize("name", ["text", "labels", "data.corpus", "data.leaks"])
def test_import_brings_no_jax(name):
    code = f"import sys, xdistil_jax.{name}; assert not {{'jax', 'datasets'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
