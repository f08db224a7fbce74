"""Sentences on disk are the sentences that were put there, however they are asked for."""

import heapq
import io
import random
import tempfile
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax.data import spool as module
from xdistil_jax.data.readers import Sentence
from xdistil_jax.data.spool import draw, join, spool

# Lone surrogates, separators of lines and of JSON, nothing at all: a word may be anything.
WORDS = st.text(max_size=5) | st.sampled_from(["", ",", '"', "\n", "\x00", "\ud800", "],["])
TAGS = st.none() | st.lists(st.sampled_from(["O", "B-PER"]), max_size=3).map(tuple)
SENTENCES = st.lists(
    st.builds(
        Sentence, st.lists(WORDS, max_size=3).map(tuple), TAGS, st.sampled_from(["de", "en", ""])
    ),
    max_size=12,
)
SLICES = st.slices(20)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 4)


@settings(deadline=None)
@given(SENTENCES, SLICES, st.integers(-14, 14))
def test_a_spool_is_the_list_that_it_was_made_of(given_, where, number):
    found = spool(iter(given_))
    assert len(found) == len(given_)
    assert list(found) == given_
    assert found[where] == tuple(given_[where])
    assert found == given_
    assert found != [*given_, Sentence(("x",), None, "de")]
    if -len(given_) <= number < len(given_):
        assert found[number] == given_[number]
        assert isinstance(found[number], Sentence)
    else:
        with pytest.raises(IndexError):
            found[number]


@settings(deadline=None)
@given(SENTENCES, SENTENCES, SENTENCES, SLICES)
def test_joined_parts_are_one_list(first, second, third, where):
    both = join(spool(first), second, spool(third))
    wanted = [*first, *second, *third]
    assert list(both) == wanted
    assert both[where] == tuple(wanted[where])


def drawn_by_definition(sentences, limit, seed):
    """Each sentence throws the dice of its language; the lowest numbers win."""
    dice, thrown = {}, {}
    for number, sentence in enumerate(sentences):
        own = dice.setdefault(sentence.language, random.Random(f"{seed} {sentence.language}"))
        thrown.setdefault(sentence.language, []).append((own.random(), number, sentence))
    lowest = (heapq.nsmallest(limit, each) for each in thrown.values())
    return [sentence for _, _, sentence in chain.from_iterable(lowest)]


@pytest.mark.parametrize("limit", [0, 1, 7, 500])
def test_a_draw_takes_the_lowest_numbers_of_each_language(limit):
    languages = random.Random(1).choices(["de", "en", "vi"], [20, 5, 1], k=300)
    text = [Sentence((str(n),), None, language) for n, language in enumerate(languages)]
    assert list(draw(iter(text), limit, 3)) == drawn_by_definition(text, limit, 3)


def test_files_have_no_name(tmp_path):
    text = [Sentence(("a", "b"), None, "de")] * 10
    folder = tmp_path / "new"
    found = spool(text, folder)
    assert not list(folder.iterdir())
    assert list(found) == text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_full_disk_is_named(tmp_path, monkeypatch):
    full = io.BufferedWriter(io.FileIO("/dev/full", "w"))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: full)
    with pytest.raises(OSError, match=f"make room, or write elsewhere: '{tmp_path}'"):
        spool([Sentence(("a",), None, "de")], tmp_path)
