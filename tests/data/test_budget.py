"""A budget of labels: drawn by language, nested, and none of the text is lost."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax.data.budget import allot, first_of
from xdistil_jax.data.readers import Sentence
from xdistil_jax.data.sources import CorpusError
from xdistil_jax.data.spool import draw, places, sample


def text(language, count, *, first=0):
    return [Sentence((f"{language}{n}",), ("O",), language) for n in range(first, first + count)]


DEV = tuple(text("de", 3, first=90) + text("vi", 2, first=90))


def parts(train, labels, share=None, seed=0):
    found = allot(train, DEV, labels=labels, share=share, seed=seed)
    return tuple({each.words[0] for each in part} for part in found[:3])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(["de", "en", "vi"]), min_size=12, max_size=60),
    st.integers(5, 20),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_every_sentence_has_one_part_and_fewer_labels_are_some_of_more(
    languages, labels, more, seed
):
    train = [Sentence((f"{code}{n}",), ("O",), code) for n, code in enumerate(languages)]
    if max(map(languages.count, languages)) < 5:
        # No language has a fifth of its labels.
        with pytest.raises(CorpusError, match="nothing is left that decides when to stop"):
            parts(train, labels, seed=seed)
        return
    learned, stopping, rest = parts(train, labels, seed=seed)
    assert sorted([*learned, *stopping, *rest]) == sorted(each.words[0] for each in train)
    for code in set(languages):
        kept = [each for each in (*learned, *stopping) if each.startswith(code)]
        assert len(kept) == min(labels, languages.count(code))
        assert sum(each.startswith(code) for each in stopping) == len(kept) // 5
    wider = parts(train, labels + more, seed=seed)
    assert learned <= wider[0]
    assert stopping <= wider[1]


def test_a_language_s_labels_do_not_depend_on_the_others():
    german = text("de", 40)
    alone = parts(german, 10)
    others = text("en", 30) + text("vi", 9)
    mixed = german + others
    # The order within a language stays; everything else may move.
    order = random.Random(1).sample(["de"] * 40 + ["o"] * 39, 79)
    one, other = iter(german), iter(others)
    shuffled = [next(one if code == "de" else other) for code in order]
    for train in (mixed, others + german, shuffled):
        found = parts(train, 10)
        for part, wanted in zip(found, alone, strict=True):
            assert {each for each in part if each.startswith("de")} == wanted
    assert parts(german, 10, seed=1) != alone


def test_labels_are_those_that_draw_would_give():
    train = text("de", 30) + text("en", 30)
    learned, stopping, _ = parts(train, 8, seed=3)
    assert learned | stopping == {each.words[0] for each in draw(train, 8, 3)}
    drawn = list(draw(train, 8, 3))
    assert [train[n] for where in places(train, 8, 3).values() for n in where] == drawn


def test_all_is_as_it_was_without_a_budget():
    train = text("de", 5)
    found = allot(train, DEV)
    assert found.train is train
    assert found[1:] == (DEV, (), ())


def test_a_share_of_all_labels_can_decide():
    learned, stopping, rest = parts(text("de", 40) + text("en", 20), None, 0.25)
    assert (len(learned), len(stopping), len(rest)) == (45, 15, 0)
    assert sum(each.startswith("en") for each in stopping) == 5
    assert parts(text("de", 40), 10, 0.0)[1] == {each.words[0] for each in DEV}


@pytest.mark.parametrize(
    ("labels", "share", "said"),
    [
        (0, None, "data.labels_per_language is 0: expected 1 or more"),
        (9, 1.0, "data.dev_from_train is 1: expected a share"),
        (9, -0.5, "data.dev_from_train is -0.5"),
        (4, None, r"nothing is left that decides .* data.dev_from_train takes 0\.2 of 4 labels"),
    ],
)
def test_numbers_that_leave_nothing_are_refused(labels, share, said):
    with pytest.raises(CorpusError, match=said):
        allot(text("de", 20), DEV, labels=labels, share=share)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 9))
def test_a_sample_keeps_the_order_and_grows(small, large, seed):
    train = text("de", 20) + text("en", 5)
    few, many = (list(sample(train, limit, seed)) for limit in sorted((small, large)))
    assert len(few) == min(small, large, 25)
    assert few == [each for each in many if each in few]
    assert many == [each for each in train if each in many]


def test_a_limit_takes_parts_one_after_the_other():
    own, others, lines = text("de", 6), text("de", 10, first=6), text("en", 10)

    def unread():
        raise AssertionError("what comes after the limit is not read")
        yield

    assert list(first_of((own, others, lines), None, 0)) == own + others + lines
    assert list(first_of((own, unread()), 6, 0)) == own
    ten = list(first_of((own, others, unread()), 10, 0))
    assert ten[:6] == own
    assert len(ten) == 10
    twelve = list(first_of((own, others, lines), 12, 0))
    assert set(ten) < set(twelve)
    assert ten != list(first_of((own, others, lines), 10, 1))
    assert list(first_of((own, others, lines), 99, 0)) == own + others + lines


@pytest.mark.parametrize("share", [None, 0.2])
@pytest.mark.parametrize("labels", [None, 10])
def test_no_label_of_a_withheld_language_is_left(labels, share):
    train = text("de", 20) + text("vi", 20) + text("en", 20)
    found = allot(train, DEV, labels=labels, share=share, withheld=("vi",))
    assert {each.language for each in found.train} == {"de", "en"}
    assert {each.language for each in found.stopping} <= {"de", "en"}
    assert [each for each in found.text if each.language == "vi"] == train[20:40]
    if labels is None and share is None:
        assert found.stopping == DEV[:3]
        assert len(found.train) == 40
    assert found.notes[0] == "Zero-shot: no label of vi was seen in training."


@pytest.mark.parametrize(
    ("withheld", "said"),
    [
        (("xx",), "data.zero_shot names xx, but train and dev are in de, en, vi: name some"),
        (("de", "en", "vi"), "data.zero_shot leaves no language with labels"),
        (("de", "vi"), "nothing is left that decides when to stop: .* data.zero_shot all that dev"),
    ],
)
def test_languages_that_cannot_be_withheld_are_named(withheld, said):
    with pytest.raises(CorpusError, match=said):
        allot(text("de", 5) + text("vi", 5) + text("en", 5), DEV, withheld=withheld)
