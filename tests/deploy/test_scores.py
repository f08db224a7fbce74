"""Scores are what the enumeration of all tag sequences says, and decoding is one for all."""

from itertools import pairwise, product

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from xdistil_jax.deploy.scores import Scorer, softmax
from xdistil_jax.labels import TagSet, repair, spans
from xdistil_jax.scoring import best_tags

TAGS = TagSet(("LOC", "PER"))


def random(sizes, seed, scale=2.0):
    edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    logits = scale * np.random.default_rng(seed).standard_normal((edges[-1], len(TAGS)))
    return logits.astype(np.float32), edges


def enumerated(logits, temperature, valid):
    """(path, probability) of all tag sequences of one sentence, by brute force."""
    words = softmax(logits, temperature)
    paths = [path for path in product(range(len(TAGS)), repeat=len(words))]
    if valid:
        paths = [path for path in paths if not repair(TAGS.decode(path))[1]]
    odds = np.array([np.prod(words[np.arange(len(path)), path]) for path in paths])
    return list(zip(paths, odds / odds.sum(), strict=True))


@pytest.mark.parametrize("decoding", ["iob2", "argmax"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_scores_are_marginals_over_all_sequences(decoding, temperature):
    sizes = [3, 0, 5, 1, 4, 0]
    logits, edges = random(sizes, seed=3)
    best = TAGS.best_of_each(logits, edges, decoding)
    scorer = Scorer(logits, edges, TAGS, decoding, temperature)
    of_tags, seen = scorer.of_tags(best), 0
    for number, (a, b) in enumerate(pairwise(edges)):
        every = enumerated(logits[a:b], temperature, decoding == "iob2")
        for place in range(b - a):
            wanted = sum(odds for path, odds in every if path[place] == best[a + place])
            assert of_tags[a + place] == pytest.approx(wanted, abs=1e-9)
        found = spans(TAGS.decode(best[a:b]))
        for span, score in zip(found, scorer.of_spans(number, best[a:b], found), strict=True):
            # Of a stray I-, which argmax may give, the entity begins with this very tag.
            first, inside = best[a + span.start], TAGS.index[f"I-{span.type}"]
            wanted = sum(
                odds for path, odds in every
                if path[span.start] == first
                and {*path[span.start + 1 : span.end]} <= {inside}
                and path[span.end : span.end + 1] != (inside,)
            )  # fmt: skip
            assert score == pytest.approx(wanted, abs=1e-9)
            seen += 1
    assert seen >= 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 99), st.booleans())
def test_tags_are_those_of_the_evaluation(sizes, seed, argmax):
    """``scoring.best_tags`` decodes for the teacher and the student in JAX."""
    logits, edges = random(sizes, seed)
    assume(len(logits))
    if argmax:
        wanted = logits.argmax(-1)
    else:
        starts, counts = jnp.asarray(edges[:-1]), jnp.asarray(np.diff(edges))
        wanted = np.asarray(best_tags(jnp.asarray(logits), starts, counts, TAGS.follows))
    found = TAGS.best_of_each(logits, edges, "argmax" if argmax else "iob2")
    np.testing.assert_array_equal(found, wanted[: len(found)])
    alone = [TAGS.best(logits[a:b], "argmax" if argmax else "iob2") for a, b in pairwise(edges)]
    np.testing.assert_array_equal(found, np.concatenate(alone))


def test_extremes_stay_probabilities():
    """An I- of which the student is certain, where none may stand; and a text of 5,000 words."""
    logits = np.full((5000, len(TAGS)), -1e4, np.float32)
    logits[:, TAGS.index["I-PER"]] = 1e4
    edges = np.array([0, 1, 5000])
    best = TAGS.best_of_each(logits, edges, "iob2")
    with np.errstate(all="raise", under="ignore"):
        scorer = Scorer(logits, edges, TAGS, "iob2", 1.0)
    assert np.isfinite(scorer.of_tags(best)).all()
    (long,) = spans(TAGS.decode(best[1:]))
    (score,) = scorer.of_spans(1, best[1:], [long])
    assert 0 < score <= 1


def test_no_words_no_scores():
    for edges in (np.array([0]), np.array([0, 0, 0])):
        scorer = Scorer(np.zeros((0, len(TAGS))), edges, TAGS, "iob2", 1.0)
        assert not len(scorer.of_tags(np.zeros(0, int)))
        scorer = Scorer(np.zeros((0, len(TAGS))), edges, TAGS, "argmax", 1.0)
        assert not len(scorer.of_tags(np.zeros(0, int)))
