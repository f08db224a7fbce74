"""Several teachers as one, against NumPy, word by word."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.teacher.test_anchor import COARSE, FINE, LENGTH, SENTENCES, SETTINGS, numbers, stored
from tests.teacher.toys import build_toy, make_params
from xdistil_jax.data.encode import pieces
from xdistil_jax.teacher.anchor import anchor
from xdistil_jax.teacher.ensemble import LAYER, combine, mix_logits, normalised

TEXT = [each._replace(language=code) for each, code in zip(SENTENCES, "abab", strict=True)]
# Rows of all four sentences, of both languages.
ROWS = np.array([[4, -1, 0], [1, 12, 5]])
WEIGHTS = np.array([[0.25, 0.75], [1.0, 0.0]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ensemble")


@pytest.fixture(scope="module")
def ours(folder):
    return stored(COARSE, folder, TEXT)


@pytest.fixture(scope="module")
def caches(folder, ours):
    """Two teachers that cut words alike."""
    return [
        build_toy(folder / str(seed), ours, settings=SETTINGS, params=make_params(seed))
        for seed in (0, 1)
    ]


def output(teacher, rows=ROWS, width=LENGTH):
    """What the train step would get: streamed rows, looked up inside jit."""
    lookup = jax.jit(teacher.lookup, static_argnames="batch")
    found = lookup(teacher.arrays, teacher.stream(rows, width), batch=None)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), found)


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_logits_are_the_weighted_mean_of_log_probabilities(ours, caches):
    found = output(combine(caches, ours, WEIGHTS))
    one, two = (log_softmax(output(cache).logits) for cache in caches)
    real = pieces(ours, ROWS, LENGTH)[1]
    assert ours.languages == ("a", "b")
    for place in np.ndindex(ROWS.shape):
        weights = WEIGHTS["ab".index("abab"[ours.sentence[ROWS[place]]])]
        wanted = weights[0] * one[place] + weights[1] * two[place]
        np.testing.assert_allclose(found.logits[place][real[place]], wanted[real[place]], atol=1e-5)
    for name, states in found.hidden.items():
        np.testing.assert_array_equal(states, numbers(caches[0].stream(ROWS, LENGTH))[name])


def test_a_teacher_of_weight_one_is_heard_alone(ours, caches):
    alone = output(combine(caches, ours, np.array([[0.0, 1.0]] * 2)))
    np.testing.assert_allclose(alone.logits, log_softmax(output(caches[1]).logits), atol=1e-5)


def test_concatenated_states_stand_side_by_side(ours, caches):
    found = output(combine(caches, ours, WEIGHTS, states="concatenated"))
    parts = [state for cache in caches for state in output(cache).hidden.values()]
    np.testing.assert_array_equal(found.hidden[LAYER], np.concatenate(parts, -1))


@pytest.mark.parametrize("codec", ["int8", "pca-5", "pca-0.9"])
def test_every_codec_is_decoded(folder, ours, codec):
    chosen = dataclasses.replace(SETTINGS, codec=codec)
    caches = [
        build_toy(folder / codec / str(seed), ours, settings=chosen, params=make_params(seed))
        for seed in (0, 1)
    ]
    alone = [output(cache).hidden for cache in caches]
    first = output(combine(caches, ours, WEIGHTS)).hidden
    jax.tree.map(np.testing.assert_array_equal, first, alone[0])
    both = output(combine(caches, ours, WEIGHTS, states="concatenated")).hidden[LAYER]
    parts = [state for hidden in alone for state in hidden.values()]
    np.testing.assert_array_equal(both, np.concatenate(parts, -1))
    assert not np.array_equal(alone[0]["layer_2"], alone[1]["layer_2"])
    few = combine(caches, ours, WEIGHTS, states="concatenated", width=3)
    assert output(few).hidden[LAYER].shape[-1] == 3


@pytest.mark.parametrize("width", [3, 64])
def test_projected_states_are_their_principal_coordinates(ours, caches, width):
    whole = output(combine(caches, ours, WEIGHTS, states="concatenated")).hidden[LAYER]
    teacher = combine(caches, ours, WEIGHTS, states="concatenated", width=width)
    found = output(teacher).hidden[LAYER]
    rows = np.arange(ours.rows)
    every = output(combine(caches, ours, WEIGHTS, states="concatenated"), rows).hidden[LAYER]
    sample = every[pieces(ours, rows, LENGTH)[1]].astype(np.float64)
    centred = sample - sample.mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:width]
    back = found @ np.asarray(teacher.directions).T + np.asarray(teacher.mean)
    real = pieces(ours, ROWS, LENGTH)[1]
    wanted = (whole - sample.mean(0)) @ directions.T @ directions + sample.mean(0)
    np.testing.assert_allclose(back[real], wanted[real], atol=2e-3)


def test_too_many_directions_are_refused(ours, caches):
    with pytest.raises(ValueError, match=r"ensemble.width is 65.* 64 coordinates"):
        combine(caches, ours, WEIGHTS, states="concatenated", width=65)


def test_beside_an_anchored_teacher_all_are_heard_at_words(folder, ours, caches):
    theirs = stored(FINE, folder, TEXT)
    other = build_toy(folder / "fine", theirs, settings=SETTINGS, params=make_params(2))
    anchored = anchor(other, theirs, ours)
    together = combine([caches[0], anchored], ours, np.full((2, 2), 0.5))
    assert together.words_only
    assert not combine(caches, ours, WEIGHTS).words_only
    index, real = pieces(ours, ROWS, LENGTH)
    first = real & (ours.word[index] >= 0) & ours.owned[index]
    both = log_softmax(output(caches[0]).logits), log_softmax(output(anchored).logits)
    wanted = (both[0] + both[1]) / 2
    np.testing.assert_allclose(output(together).logits[first], wanted[first], atol=1e-5)


def test_arrays_of_the_members_travel_as_they_were_written(ours, caches):
    streamed = combine(caches, ours, WEIGHTS).stream(ROWS, LENGTH)
    for member in streamed["members"]:
        assert member["logits"].dtype == np.float16
        assert {each.dtype for each in member["hidden"].values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_mixing_equal_distributions_changes_nothing():
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    mixed = mix_logits([logits, logits + 3], [np.full(5, 0.3), np.full(5, 0.7)])
    np.testing.assert_allclose(mixed, log_softmax(logits), atol=1e-5)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (0.0, 0.0), (1.0, 2.0, 3.0)])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="expected 2 numbers, one for each teacher"):
        normalised(weights, 2)


def test_weights_sum_to_one():
    assert normalised((), 4) == (0.25,) * 4
    assert normalised((3, 1), 2) == (0.75, 0.25)
