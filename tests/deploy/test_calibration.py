"""The temperature is found again, and the calibration error is what its definition says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy.test_classifier import CLASSES, spec_of
from tests.deploy.toys import save_toy
from xdistil_jax.data.record import Sentence
from xdistil_jax.deploy.bundle import load_bundle
from xdistil_jax.deploy.calibration import (
    calibration_error,
    find_lowest,
    fit_temperature,
    measure_calibration,
)
from xdistil_jax.deploy.scores import softmax
from xdistil_jax.deploy.words import Student, in_numpy, word_logits


@settings(max_examples=30, deadline=None)
@given(st.floats(0.06, 18))
def test_the_lowest_point_is_found(at):
    assert find_lowest(lambda x: (np.log(x) - np.log(at)) ** 2, 0.05, 20.0) == pytest.approx(
        at, rel=1e-3
    )


def sampled(student, sentences, temperature, seed=0):
    """Sentences whose classes are drawn as a student of this temperature says."""
    rng = np.random.default_rng(seed)
    odds = [softmax(each[0], temperature) for each in word_logits(student, sentences)]
    drawn = [CLASSES.classes[rng.choice(len(each), p=each)] for each in odds]
    return [each._replace(tags=(name,)) for each, name in zip(sentences, drawn, strict=True)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration") / "student"
    save_toy(folder, spec_of("last"), tagset=CLASSES)
    return in_numpy(load_bundle(folder))


WORDS = ("Anna", "Berg", "fuhr", "nach", "Berlin", "3.5", "Москва")


def random_texts(count):
    rng = np.random.default_rng(1)
    return [
        Sentence(tuple(rng.choice(WORDS, rng.integers(1, 9))), None, "und") for _ in range(count)
    ]


def test_the_temperature_of_the_labels_is_found(classifier):
    texts = sampled(classifier, random_texts(500), temperature=3.0)
    found = fit_temperature(classifier, texts)
    assert found == pytest.approx(3.0, rel=0.2)
    hot = Student(_with(classifier.bundle, found), classifier.logits)
    measured = measure_calibration(hot, texts)
    assert measured.word_after < 0.05 < measured.word_before
    assert (measured.words, measured.entities, measured.temperature) == (500, 0, found)
    assert measured.entity_before is measured.entity_after is None


def _with(bundle, temperature):
    return type(bundle)(**{**vars(bundle), "temperature": temperature})


def test_a_tagger_that_is_too_sure_is_cooled(tmp_path):
    save_toy(tmp_path / "s")
    student = in_numpy(load_bundle(tmp_path / "s"))
    rng = np.random.default_rng(0)
    # Labels that the text says nothing of: the flatter, the better.
    dev = [
        each._replace(tags=tuple(rng.choice(["O", "B-PER", "B-LOC"], len(each.words))))
        for each in random_texts(300)
    ]
    found = fit_temperature(student, dev)
    assert found > 3
    save_toy(tmp_path / "cool", temperature=found)
    cool = in_numpy(load_bundle(tmp_path / "cool"))
    assert cool.bundle.temperature == found
    measured = measure_calibration(cool, dev)
    assert measured.entity_after < measured.entity_before
    assert measured.word_after < measured.word_before
    assert measured.words == sum(len(each.words) for each in dev)


def test_without_labels_the_temperature_is_1(tmp_path):
    save_toy(tmp_path / "s")
    student = in_numpy(load_bundle(tmp_path / "s"))
    strange = Sentence(("a",), ("B-MISC",), "und")
    for dev in ([], random_texts(3), [strange], [Sentence((), (), "und")]):
        assert fit_temperature(student, dev) == 1.0
    assert measure_calibration(student, []).word_after is None


def test_calibration_error_is_the_weighted_gap_of_bins():
    scores = np.array([0.05, 0.05, 0.95, 0.95, 1.0, 0.5])
    right = np.array([False, True, True, True, False, True])
    wanted = (abs(0.1 - 1) + abs(0.95 * 2 + 1 - 2) + abs(0.5 - 1)) / 6
    assert calibration_error(scores, right, bins=10) == pytest.approx(wanted)
    assert calibration_error(np.zeros(0), np.zeros(0, bool)) is None


def test_a_bundle_of_before_has_temperature_1(tmp_path):
    save_toy(tmp_path / "s")
    assert load_bundle(tmp_path / "s").temperature == 1.0
