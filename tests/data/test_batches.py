"""A batch is a function of (seed, stage, step); every row has its turn; buckets waste little."""

import dataclasses
import sys
from itertools import chain, combinations, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax.data.batches import (
    CHUNK,
    SHARDS,
    Buckets,
    Sampler,
    Source,
    choose_widths,
    language_rates,
    mix,
    uniform,
    whole_rows,
)
from xdistil_jax.data.encode import encode_in_memory
from xdistil_jax.data.readers import read
from xdistil_jax.data.tokenizer import load_tokenizer

BUCKETS = Buckets((3, 5, 8), token_budget=160)  # batches of 48, 32 and 16 rows
MASK = (1 << 64) - 1

GOLDEN_MIX = [16613338946343043936, 13264548337748323810, 16803123258551283528]
GOLDEN_UNIFORM = 0.6540133728219998
GOLDEN_CALLS = [
    (
        1,
        [
            [-1, -1, 34, 35, -1, -1, 22, 23, -1, -1, 26, 11, -1, -1, 14, 31],
            [-1, -1, 2, 3, -1, -1, 6, 7, -1, -1, 10, 27, -1, -1, 30, 15],
            [-1, -1, 18, 19, -1, -1, 38, 39, -1, -1, -1, -1, -1, -1, -1, -1],
        ],
    ),
    (
        0,
        [
            [32, 33, -1, -1, 36, 21, -1, -1, 24, 9, -1, -1, 12, 29, -1, -1],
            [0, 17, -1, -1, 4, 37, -1, -1, 8, 25, -1, -1, 28, 13, -1, -1],
            [16, 1, -1, -1, 20, 5, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1],
        ],
    ),
]
# The first two of four steps; in each pair a labelled row and a transfer row of one shard.
GOLDEN_MIXED = [
    "132 32 117 33 118 34 119 35 136 36 137 21 106 22 107 23 "
    "124 24 109 9 126 26 111 11 128 12 129 29 114 14 131 31",
    "116 0 101 17 102 2 103 3 120 4 105 37 138 6 139 7 "
    "108 8 125 25 110 10 111 27 112 28 113 13 130 30 115 15",
]


def source(count, seed=0, first=0, rates=None):
    lengths = np.random.default_rng(seed).choice([2, 3, 4, 5, 7, 8], count)
    rates = np.ones(count) if rates is None else rates
    return Source(np.arange(first, first + count), lengths, rates)


LABELLED = source(90, seed=1)
TRANSFER = source(700, seed=2, first=10_000)


def sampler(fraction=0.5, *, seed=7, stage=1, labelled=LABELLED, transfer=TRANSFER):
    return Sampler(BUCKETS, labelled, transfer, fraction, seed, stage)


def batches(calls, count):
    """The first ``count`` steps of ``calls``: (bucket, rows)."""
    steps = ((call.bucket, rows.tolist()) for call in calls for rows in call.rows)
    return list(islice(steps, count))


def epoch(drawn, number=0):
    """The batches of one epoch."""
    start = sum(drawn.epoch_size(before) for before in range(number))
    return batches(drawn.calls(start, CHUNK), drawn.epoch_size(number))


def rows_of(steps):
    return [row for _, rows in steps for row in rows if row >= 0]


# --- the generator ---------------------------------------------------------------------------


def mix_by_definition(*words):
    """splitmix64 on Python's own integers."""
    state = 0
    for word in words:
        state = ((state ^ (word & MASK)) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def test_golden_values_of_the_generator():
    # 0xE220A8397B1DCDAF is the first value of splitmix64 with seed 0, as published.
    assert int(mix(0)) == 0xE220A8397B1DCDAF
    assert [int(v) for v in mix(1, 2, np.arange(3))] == GOLDEN_MIX
    assert float(uniform(5, 6)) == GOLDEN_UNIFORM


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5))
def test_the_generator_equals_its_definition(words):
    assert int(mix(*words)) == mix_by_definition(*words)
    assert 0.0 <= float(uniform(*words)) < 1.0
    assert float(uniform(*words)) == (mix_by_definition(*words) >> 11) / 2**53


def test_the_generator_broadcasts():
    grid = mix(3, np.arange(2)[:, None], np.arange(4))
    assert grid.tolist() == [[mix_by_definition(3, a, b) for b in range(4)] for a in range(2)]


def test_golden_batches():
    rows = np.arange(40)
    small = Source(rows, 2 + rows % 4, np.ones(40))
    drawn = Sampler(Buckets((3, 5), 80), small, small, 1.0, seed=3, stage=2)
    calls = list(islice(drawn.calls(0, CHUNK), 2))
    assert [(call.bucket, call.rows.tolist()) for call in calls] == GOLDEN_CALLS
    mixed = Sampler(Buckets((5,), 160), small._replace(rows=rows + 100), small, 0.5, 3, 2)
    found = next(mixed.calls(0, 2)).rows.tolist()
    assert found == [[int(row) for row in step.split()] for step in GOLDEN_MIXED]


# --- a batch is a function of its position ---------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 60),
    st.integers(1, CHUNK),
    st.integers(1, CHUNK),
)
def test_later_calls_are_the_tail_of_all_calls(fraction, step, size, other):
    whole = batches(sampler(fraction).calls(0, size), step + 40)
    assert batches(sampler(fraction).calls(step, other), 40) == whole[step:]


@pytest.mark.parametrize("size", [1, 5, 16])
def test_calls_that_are_resumed_at_their_ends_are_the_same_calls(size):
    calls = list(islice(sampler().calls(0, size), 30))
    assert max(len(call.rows) for call in calls) <= size
    ends = np.cumsum([len(call.rows) for call in calls])
    for number in (0, 3, 20):
        again = list(islice(sampler().calls(int(ends[number]), size), 5))
        for mine, its in zip(again, calls[number + 1 :], strict=False):
            assert mine.bucket == its.bucket
            np.testing.assert_array_equal(mine.rows, its.rows)


def test_calls_under_way_do_not_feel_other_calls():
    drawn = sampler(1.0)
    calls = drawn.calls(0, 4)
    found = [next(calls)]
    next(drawn.calls(3 * drawn.epoch_size(0), 4))
    found += islice(calls, 20)
    for mine, its in zip(found, sampler(1.0).calls(0, 4), strict=False):
        assert (mine.bucket, mine.rows.tolist()) == (its.bucket, its.rows.tolist())


@pytest.mark.parametrize("other", [{"seed": 8}, {"stage": 2}])
def test_seeds_and_stages_differ(other):
    for fraction in (0.0, 0.5, 1.0):
        mine, its = epoch(sampler(fraction)), epoch(sampler(fraction, **other))
        assert mine != its
        assert [rows for _, rows in mine] != [rows for _, rows in its]


def test_epochs_differ_in_their_order():
    drawn = sampler(1.0)
    assert epoch(drawn, 0) != epoch(drawn, 1)
    assert sorted(rows_of(epoch(drawn, 0))) == sorted(rows_of(epoch(drawn, 1)))
    orders = {tuple(bucket for bucket, _ in epoch(drawn, number)) for number in range(8)}
    assert len(orders) > 2


# --- what an epoch holds ---------------------------------------------------------------------


@pytest.mark.parametrize(("fraction", "text"), [(0.0, TRANSFER), (1.0, LABELLED)])
def test_every_row_once_in_an_epoch(fraction, text):
    for number in range(3):
        assert sorted(rows_of(epoch(sampler(fraction), number))) == text.rows.tolist()


@pytest.mark.parametrize("shards", [SHARDS, 4, 32])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_a_batch_takes_an_equal_share_from_each_shard(fraction, shards):
    drawn = sampler(fraction)
    drawn = dataclasses.replace(drawn, buckets=dataclasses.replace(drawn.buckets, shards=shards))
    for bucket, rows in epoch(drawn):
        labelled, transfer = drawn.shares(bucket)
        role = drawn.role(bucket).reshape(shards, labelled + transfer)
        assert len(rows) == role.size
        assert role.sum(1).tolist() == [labelled] * shards
        for shard, (row, is_labelled) in enumerate(
            zip(np.reshape(rows, role.shape), role, strict=True)
        ):
            for text, chosen in ((LABELLED, is_labelled), (TRANSFER, ~is_labelled)):
                found = row[chosen & (row >= 0)]
                assert np.isin(found, text.rows).all()
                assert ((found - text.rows[0]) % shards == shard).all()


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_every_row_fits_its_bucket(fraction):
    sizes = dict(zip(TRANSFER.rows.tolist(), TRANSFER.lengths.tolist(), strict=True))
    sizes |= dict(zip(LABELLED.rows.tolist(), LABELLED.lengths.tolist(), strict=True))
    drawn = sampler(fraction)
    for bucket, rows in epoch(drawn):
        role = drawn.role(bucket)
        for row, is_labelled in zip(rows, role, strict=True):
            if row >= 0:
                fits = BUCKETS.of(np.array([sizes[row]]))[0]
                # A labelled row may fill a wider bucket in a mixed batch; nothing else may.
                assert fits == bucket or (is_labelled and fraction < 1 and fits < bucket)


@pytest.mark.parametrize("count", [90, 1500])
@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
def test_joint_stages_see_transfer_rows_once_and_labelled_rows_evenly(fraction, count):
    drawn = sampler(fraction, labelled=source(count, seed=1))
    seen = np.zeros(count, int)
    for number in range(4):
        rows = np.array(rows_of(epoch(drawn, number)))
        assert sorted(rows[rows >= 10_000].tolist()) == TRANSFER.rows.tolist()
        seen += np.bincount(rows[rows < 10_000], minlength=count)
        assert seen.max() - seen.min() <= 1


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.0, (0, 8)), (0.01, (1, 7)), (0.25, (2, 6)), (0.75, (6, 2)), (0.99, (7, 1)), (1.0, (8, 0))],
)
def test_the_labelled_share_of_a_batch(fraction, expected):
    drawn = Sampler(Buckets((8,), SHARDS * 8 * 8), LABELLED, TRANSFER, fraction, 0, 0)
    assert drawn.shares(0) == expected
    assert drawn.role(0).sum() == SHARDS * expected[0]
    # Where a shard has one row only, a mixed batch grows to hold one of each.
    assert sampler(fraction).shares(2) == ((1, 1) if 0 < fraction < 1 else (fraction, 1 - fraction))


def test_labelled_rows_wider_than_all_transfer_rows_have_their_turn():
    wide = Source(np.arange(64), np.full(64, 8), np.ones(64))
    narrow = Source(np.arange(10_000, 10_300), np.full(300, 3), np.ones(300))
    drawn = sampler(0.5, labelled=wide, transfer=narrow)
    steps = list(chain(epoch(drawn, 0), epoch(drawn, 1)))
    assert set(rows_of(steps)) >= set(range(64))
    assert all(bucket == 2 for bucket, rows in steps if min(rows_of([(bucket, rows)])) < 64)


def test_steps_of_epochs():
    drawn = sampler(0.0)
    size = drawn.epoch_size(0)
    assert drawn.steps(3) == 3 * size
    assert drawn.steps(1.5) == size + round(0.5 * size)
    assert drawn.steps(0.0001) == 1


def test_text_that_is_not_there_is_missed():
    nothing = source(0)
    with pytest.raises(ValueError, match="labelled text, and there is none"):
        sampler(0.5, labelled=nothing)
    with pytest.raises(ValueError, match="transfer text, and there is none"):
        sampler(0.0, transfer=nothing)
    assert rows_of(epoch(sampler(1.0, transfer=nothing)))


# --- languages -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_temperature_gives_languages_their_shares(temperature):
    counts = np.array([400, 100, 25])
    languages = np.repeat(np.arange(3), counts)
    rates = language_rates(languages, temperature)
    assert rates.mean() == pytest.approx(1.0)
    text = Source(np.arange(525), np.full(525, 3), rates)
    drawn = sampler(0.0, transfer=text)
    rows = list(chain(*(rows_of(epoch(drawn, number)) for number in range(6))))
    found = np.bincount(languages[rows], minlength=3) / len(rows)
    share = counts ** (1 / temperature)
    np.testing.assert_allclose(found, share / share.sum(), atol=0.02)
    seen = np.bincount(rows, minlength=525)
    for language in range(3):
        mine = seen[languages == language]
        assert mine.max() - mine.min() <= 1


def test_rates_pass_over_languages_without_rows():
    assert language_rates(np.array([], int), 2.0).tolist() == []
    assert language_rates(np.array([0, 0, 2, 2]), 3.0).tolist() == pytest.approx([1.0] * 4)


# --- buckets ---------------------------------------------------------------------------------


def slots(widths, lengths):
    return sum(min(width for width in widths if width >= length) for length in lengths)


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 6))
def test_chosen_widths_are_the_best_there_are(lengths, count):
    widths = choose_widths(np.array(lengths), count)
    assert widths == tuple(sorted(set(widths)))
    assert len(widths) <= count
    assert widths[-1] == max(lengths)
    below = sorted(set(lengths))[:-1]
    choices = chain(*(combinations(below, size) for size in range(count)))
    best = min(slots((*chosen, max(lengths)), lengths) for chosen in choices)
    assert slots(widths, lengths) == best
    padding = Buckets(widths, 64).padding(np.array(lengths))
    assert padding == pytest.approx(best / sum(lengths) - 1)


@given(st.lists(st.integers(1, 8), min_size=1, max_size=60), st.integers(0, 5))
def test_capped_batches_are_one_step_a_bucket_and_as_small_as_that_allows(lengths, seed):
    source = Source(np.arange(len(lengths)), np.array(lengths), np.ones(len(lengths)))
    roomy = Buckets((3, 5, 8), token_budget=8 * SHARDS * 60)
    capped = roomy.capped(source)
    calls = list(Sampler(capped, source, source, 1.0, seed, 0)._epoch(0))
    assert sorted(row for call in calls for row in call.rows.flat if row >= 0) == list(source.rows)
    assert len(calls) == len({call.bucket for call in calls}) == sum(len(c.rows) for c in calls)
    for call in calls:
        fullest = max((shard >= 0).sum() for shard in call.rows.reshape(SHARDS, -1))
        assert call.rows.size == fullest * SHARDS
    tight = Buckets((3, 5, 8), token_budget=16)
    assert tight.capped(source, source).batch_sizes == tight.batch_sizes == (16, 16, 16)


def test_batches_hold_the_token_budget_in_equal_shares():
    assert BUCKETS.batch_sizes == (48, 32, 16)
    assert Buckets((8, 512), 256).batch_sizes == (32, 16)
    assert BUCKETS.of(np.array([1, 3, 4, 5, 6, 8])).tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="row of 9 pieces"):
        BUCKETS.of(np.array([9]))


@pytest.mark.parametrize("size", [1, 3, 16])
def test_whole_rows_gives_every_row_once_and_in_order(size):
    for bucket, call in ((call.bucket, call) for call in _whole(size)):
        assert 1 <= len(call.rows) <= size
        assert call.rows.shape[1] == BUCKETS.batch_sizes[bucket]
    found = list(chain(*(call.rows[call.rows >= 0].tolist() for call in _whole(size))))
    bucket = BUCKETS.of(TRANSFER.lengths)
    assert found == TRANSFER.rows[np.argsort(bucket, kind="stable")].tolist()


def _whole(size):
    return whole_rows(BUCKETS, TRANSFER.rows, TRANSFER.lengths, size)


def test_padding_on_wikiann(shared_data, capsys):
    tokenizer = load_tokenizer(shared_data / "vocab/bert-base-multilingual-cased-vocab.txt")
    lengths = []
    for folder in sorted((shared_data / "wikiann").iterdir()):
        sentences = list(read(str(folder / "train.txt")))
        lengths.append(encode_in_memory(sentences, tokenizer, max_length=128).lengths)
    widths = choose_widths(np.concatenate(lengths), 6)
    padding = Buckets(widths, 4096).padding(np.concatenate(lengths))
    with capsys.disabled():
        sys.stdout.write(
            f"\npadding on WikiAnn, {len(lengths)} languages: {padding:.1%}, {widths}\n"
        )
    assert len(lengths) == 10
    assert len(widths) <= 6
    assert padding <= 0.25
