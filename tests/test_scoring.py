"""Span counts in the program equal seqeval's, whatever the tags."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from xdistil_jax.labels import TagSet
from xdistil_jax.scoring import SpanCounts, best_tags, f1, language_mean, span_counts

TAGS = TagSet(("LOC", "ORG", "PER"))
LANGUAGES = 3
SIZE = 64

_counted = jax.jit(partial(span_counts, begins=TAGS.begins, kinds=TAGS.kinds, groups=LANGUAGES))


@st.composite
def _sentence(draw):
    size = draw(st.integers(0, 8))
    tags = st.lists(st.integers(0, len(TAGS) - 1), min_size=size, max_size=size)
    gold = draw(tags)
    # Random guesses alone are almost never right where it is hard: at the ends of long entities.
    guess = draw(st.one_of(tags, st.just(gold)))
    return draw(st.integers(0, LANGUAGES - 1)), gold, guess, draw(st.integers(0, 2))


def _flat(sentences):
    """Sentences end to end, each followed by its padding words, filled up to SIZE with padding."""
    rows = []
    for language, gold, guess, padding in sentences:
        for position, pair in enumerate(zip(guess, gold, strict=True)):
            rows.append((*pair, position == 0, language))
        # What stands on padding must not matter, so only one of the two goes on there.
        rows += [(2, 0, False, -1)] * padding
    rows += [(1, 1, True, -1)] * (SIZE - len(rows))
    predicted, gold, first, group = zip(*rows, strict=True)
    return (
        jnp.array(predicted, jnp.int32),
        jnp.array(gold, jnp.int32),
        jnp.array(first, bool),
        jnp.array(group, jnp.int32),
    )


def _tags(sentences, language):
    chosen = [each for each in sentences if each[0] == language]
    return [list(TAGS.decode(each[1])) for each in chosen], [
        list(TAGS.decode(each[2])) for each in chosen
    ]


@settings(deadline=None, max_examples=150)
@given(st.lists(_sentence(), min_size=1, max_size=6))
@example([(0, [1, 2], [1, 2], 0), (0, [2, 2], [2, 2], 0)])  # I- right after a sentence's end
@example([(0, [1, 4], [1, 4], 0), (1, [2, 1], [2, 2], 1)])  # stray I-, another type
def test_counts_equal_seqeval(sentences):
    counts = _counted(*_flat(sentences))
    scores, defined = f1(counts), []
    for language in range(LANGUAGES):
        gold, guess = _tags(sentences, language)
        if not gold:
            assert all(int(field[language]) == 0 for field in counts)
            continue
        precision, recall, score, support = precision_recall_fscore_support(
            gold, guess, average="micro", zero_division=0
        )
        correct, found, present = (int(field[language]) for field in counts)
        assert present == support
        assert correct == pytest.approx(recall * present)
        assert (correct / found if found else 0) == pytest.approx(precision)
        assert float(scores[language]) == pytest.approx(score)
        if support:
            assert score == f1_score(gold, guess, zero_division=0)
            defined.append(score)
    assert float(language_mean(counts)) == pytest.approx(np.mean(defined) if defined else 0.0)


@settings(deadline=None, max_examples=40)
@given(st.lists(_sentence(), min_size=1, max_size=3), st.lists(_sentence(), max_size=3))
def test_merged_counts_are_the_counts_of_both(some, others):
    merged = _counted(*_flat(some)).merge(_counted(*_flat(others)))
    for mine, its in zip(merged, _counted(*_flat(some + others)), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_padding_ends_an_entity_and_is_not_counted():
    counts = _counted(*_flat([(1, [1, 2], [1, 2], 2), (2, [0], [1], 0)]))
    np.testing.assert_array_equal(counts.correct, [0, 1, 0])
    np.testing.assert_array_equal(counts.predicted, [0, 1, 1])
    np.testing.assert_array_equal(counts.gold, [0, 1, 0])


def test_a_word_without_a_tag_is_outside():
    tags = jnp.array([1, -1, 2, 1])
    first, group = jnp.array([True, False, False, False]), jnp.zeros(4, jnp.int32)
    counts = _counted(tags, tags, first, group)
    assert int(counts.gold[0]) == int(counts.correct[0]) == 3


def test_language_mean_leaves_out_languages_without_gold():
    counts = SpanCounts(jnp.array([1, 0, 0]), jnp.array([1, 5, 0]), jnp.array([3, 0, 0]))
    assert float(language_mean(counts)) == pytest.approx(0.5)
    np.testing.assert_allclose(f1(counts), [0.5, 0.0, 0.0])


def test_language_numbers_beyond_the_groups_are_not_counted():
    tags, group = jnp.array([1, 1]), jnp.array([0, LANGUAGES])
    counts = _counted(tags, tags, jnp.array([True, True]), group)
    assert int(counts.gold.sum()) == 1


_best = jax.jit(best_tags)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=6, max_size=6), st.integers(0, 2**32 - 1))
@example([0, 9, 0, 1, 9, 0], 1)
def test_best_tags_equal_those_without_jax(sizes, seed):
    logits = np.random.default_rng(seed).normal(size=(SIZE, len(TAGS))).astype(np.float32)
    bounds = np.cumsum([0, *sizes])
    found = _best(logits, jnp.asarray(bounds[:-1]), jnp.asarray(sizes), TAGS.follows)
    for start, end in pairwise(bounds):
        np.testing.assert_array_equal(found[start:end], TAGS.best(logits[start:end], "iob2"))


def test_a_long_sentence_keeps_its_precision():
    """Ten thousand words of which all but one are sure: that one hangs on a difference of 0.001."""
    logits = np.full((10_000, len(TAGS)), -30.0, np.float32)
    logits[:, 0] = 30.0
    logits[5_000] = [0.0, 0.001, -9, -9, -9, -9, -9]
    found = _best(logits, jnp.array([0]), jnp.array([10_000]), TAGS.follows)
    np.testing.assert_array_equal(np.flatnonzero(found), [5_000])
    np.testing.assert_array_equal(TAGS.best(logits, "iob2"), found)
