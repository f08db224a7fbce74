"""Tags: spans are seqeval's, and a repair changes no span."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from tests.oracles import best_by_trying_all
from xdistil_jax.labels import Span, TagSet, repair, spans, split_tag

TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-A-B", "I-A-B"])
ANY_TAGS = st.lists(TAGS, max_size=12).map(tuple)


@settings(deadline=None)
@given(ANY_TAGS)
def test_spans_equal_seqeval(tags):
    # seqeval calls the whole of a type after the first dash; its ends are inclusive.
    expected = [Span(kind, first, last + 1) for kind, first, last in get_entities(list(tags))]
    assert spans(tags) == expected


@settings(deadline=None)
@given(ANY_TAGS)
def test_repair_gives_valid_tags_with_equal_spans(tags):
    fixed, changed = repair(tags)
    assert spans(fixed) == spans(tags)
    assert changed == sum(a != b for a, b in zip(tags, fixed, strict=True))
    for before, tag in zip(("O", *fixed), fixed, strict=False):
        prefix, kind = split_tag(tag)
        assert prefix != "I" or split_tag(before)[1] == kind
    assert repair(fixed) == (fixed, 0)


def test_repair_reads_iob1():
    tags = ("I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-PER")
    assert repair(tags) == (("B-PER", "I-PER", "B-PER", "O", "B-LOC", "B-PER"), 3)


@pytest.mark.parametrize("tag", ["", "X", "B-", "I", "b-PER", "S-PER", "o", "-PER", "PER"])
def test_a_tag_that_is_not_iob2_is_named(tag):
    with pytest.raises(ValueError, match=re.escape(repr(tag))):
        split_tag(tag)


def test_tagset_of_types():
    tagset = TagSet.of(["I-PER", "O", "B-LOC", "B-PER"])
    assert tagset.tags == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert tagset == TagSet(("LOC", "PER"))
    assert len(tagset) == 5
    np.testing.assert_array_equal(tagset.kinds, [-1, 0, 0, 1, 1])
    np.testing.assert_array_equal(tagset.begins, [False, True, False, True, False])


@given(st.lists(st.sampled_from(TagSet(("A", "B")).tags)))
def test_index_and_decode_are_inverse(tags):
    tagset = TagSet(("A", "B"))
    assert tagset.decode([tagset.index[tag] for tag in tags]) == tuple(tags)


def test_what_may_follow_what():
    tagset = TagSet(("A", "B"))
    allowed = {
        "O": "O B-A B-B", "B-A": "O B-A I-A B-B", "I-A": "O B-A I-A B-B",
        "B-B": "O B-A B-B I-B", "I-B": "O B-A B-B I-B",
    }  # fmt: skip
    for tag, line in zip(tagset.tags, tagset.follows, strict=True):
        assert {tagset.tags[k] for k in np.flatnonzero(line)} == set(allowed[tag].split())


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.sampled_from([0.1, 3.0]))
def test_the_best_sequence_is_that_of_trying_all(seed, words, spread):
    tagset = TagSet(("A", "B"))
    logits = np.random.default_rng(seed).normal(size=(words, len(tagset))) * spread
    found = tagset.best(logits, "iob2")
    np.testing.assert_array_equal(found, best_by_trying_all(logits, tagset))
    assert repair(tagset.decode(found))[1] == 0
    plain = tagset.best(logits, "argmax")
    np.testing.assert_array_equal(plain, logits.argmax(-1))
    if repair(tagset.decode(plain))[1] == 0:
        np.testing.assert_array_equal(found, plain)
