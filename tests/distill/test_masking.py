"""Whole-word masking: how much, which pieces, what stands there instead, equal for whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distill.toys import make_store
from xdistil_jax.distill.feed import collate
from xdistil_jax.distill.masking import Masking, masked_language_model
from xdistil_jax.sharding import batch_sharding, make_mesh
from xdistil_jax.types import Batch, EncoderOutput, Masked

VOCABULARY = 50
PAD, UNK, CLS, SEP, MASK = range(5)
MASKING = Masking(MASK, (PAD, UNK, CLS, SEP, MASK), VOCABULARY)
run = jax.jit(lambda masking, batch, key: masking(batch, key), static_argnums=0)


def batch_of(rows):
    """A Batch of rows of (piece, does a word begin there)."""
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width), np.int32)
    starts = np.zeros((len(rows), width), bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = [piece for piece, _ in row]
        starts[number, : len(row)] = [start for _, start in row]
    nothing = np.zeros_like(starts)
    lengths = np.array([len(row) for row in rows], np.int32)
    numbers = np.arange(len(rows), dtype=np.int32)
    return Batch(numbers, tokens, lengths, starts, tokens, nothing, nothing, nothing)


def long_rows(count, width=128, seed=0):
    """Packed rows: words of one to four pieces, sentences of about 20."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        row = [(CLS, False)]
        while len(row) < width - 1:
            size = min(int(random.integers(1, 5)), width - 1 - len(row))
            row += [(int(random.integers(5, VOCABULARY)), at == 0) for at in range(size)]
            if random.random() < 0.05 and len(row) < width - 1:
                row.append((SEP, False))
        rows.append([*row, (SEP, False)])
    return batch_of(rows)


ROWS = st.lists(
    st.lists(
        st.tuples(st.integers(0, VOCABULARY - 1), st.booleans()), min_size=1, max_size=24
    ),
    min_size=4, max_size=4,
)  # fmt: skip


def words_of(batch, row):
    """The sets of places of the words of a row, without special pieces."""
    words = []
    for place in range(int(batch.lengths[row])):
        if batch.word_start[row, place]:
            words.append(set())
        if words and batch.tokens[row, place] not in MASKING.special:
            words[-1].add(place)
    return [word for word in words if word]


@settings(deadline=None, max_examples=80)
@given(ROWS, st.integers(0, 2**31 - 1), st.sampled_from([0.15, 0.4]))
def test_whole_words_are_hidden_and_nothing_else(rows, seed, rate):
    batch = batch_of([row + [(PAD, False)] * (24 - len(row)) for row in rows])
    batch = batch._replace(lengths=np.array([len(row) for row in rows], np.int32))
    masking = Masking(MASK, MASKING.special, VOCABULARY, rate)
    after = jax.device_get(run(masking, batch, jax.random.key(seed)))
    most = masking.most(24)
    assert after.masked.places.shape == (len(rows), most)
    for row in range(len(rows)):
        mask = after.masked.mask[row]
        places = after.masked.places[row][mask].tolist()
        assert places == sorted(set(places))
        words = words_of(batch, row)
        size = sum(map(len, words))
        share = min(max(1, round(rate * size)), most) if words else 0
        assert len(places) <= share
        hidden = [word for word in words if word & set(places)]
        assert set(places) == set().union(*hidden), "no word is hidden in part"
        free = [word for word in words if word not in hidden]
        if len(words) <= 4:
            assert not any(len(word) <= share - len(places) for word in free)
        np.testing.assert_array_equal(
            after.masked.pieces[row], batch.tokens[row][after.masked.places[row]]
        )
        untouched = np.setdiff1d(np.arange(24), places)
        np.testing.assert_array_equal(after.tokens[row, untouched], batch.tokens[row, untouched])
        assert not np.isin(after.tokens[row, places], [PAD, UNK, CLS, SEP]).any()


def test_rates_and_proportions_hold():
    batch = long_rows(400)
    after = jax.device_get(run(MASKING, batch, jax.random.key(1)))
    ordinary = (batch.tokens >= 5).sum()
    hidden = after.masked.mask.sum()
    assert 0.145 < hidden / ordinary < 0.155
    rows, slots = np.nonzero(after.masked.mask)
    now = after.tokens[rows, after.masked.places[rows, slots]]
    before = after.masked.pieces[rows, slots]
    masked, same = (now == MASK).mean(), (now == before).mean()
    assert masked == pytest.approx(0.8, abs=0.015)
    # A piece drawn at random is itself in one case of 45.
    assert same == pytest.approx(0.1 + 0.1 / 45, abs=0.012)
    drawn = now[(now != MASK) & (now != before)]
    counts = np.bincount(drawn, minlength=VOCABULARY)
    assert not counts[:5].any()
    assert (counts[5:] > 0).all()
    # Long words are hidden as often as short ones, or nearly so.
    sizes = np.array([(len(w), bool(w & set(after.masked.places[r][after.masked.mask[r]].tolist())))
                      for r in range(60) for w in words_of(batch, r)])  # fmt: skip
    for size in range(1, 5):
        assert sizes[sizes[:, 0] == size, 1].mean() == pytest.approx(0.15, abs=0.06)


def test_key_and_row_decide_and_nothing_else():
    batch = long_rows(16, width=64)
    one = jax.device_get(run(MASKING, batch, jax.random.key(1)))
    again = jax.device_get(run(MASKING, batch, jax.random.key(1)))
    other = jax.device_get(run(MASKING, batch, jax.random.key(2)))
    np.testing.assert_array_equal(one.tokens, again.tokens)
    assert (one.masked.places != other.masked.places).any(axis=1).mean() > 0.8
    alike = jax.tree.map(lambda leaf: np.repeat(leaf[:1], 16, axis=0), batch)
    alike = jax.device_get(run(MASKING, alike._replace(rows=batch.rows), jax.random.key(1)))
    assert len({tuple(row) for row in alike.masked.places.tolist()}) > 8, "the row's number counts"
    order = np.random.default_rng(0).permutation(16)
    turned = jax.tree.map(lambda leaf: np.asarray(leaf)[order], batch)
    moved = jax.device_get(run(MASKING, turned, jax.random.key(1)))
    np.testing.assert_array_equal(moved.tokens, one.tokens[order])
    held = [jax.device_get(run(MASKING, batch, None)) for _ in range(2)]
    np.testing.assert_array_equal(held[0].tokens, held[1].tokens)
    assert (held[0].tokens != one.tokens).any()


def test_what_is_hidden_is_drawn_apart_from_dropout():
    """``split`` and ``fold_in`` of one key give the same keys, and dropout splits the step's."""
    batch, key = long_rows(16, width=64), jax.random.key(1)
    dropout = jax.random.split(key, 16)
    assert (
        jax.random.key_data(dropout[3]) == jax.random.key_data(jax.random.fold_in(key, 3))
    ).all()
    bits = jax.vmap(lambda each: jax.random.bits(each, (3, 64)))(dropout)
    by_dropout = jax.device_get(MASKING.chosen(jax.tree.map(jnp.asarray, batch), bits[:, 0]))
    masked = jax.device_get(run(MASKING, batch, key)).masked
    hidden = [set(row[real]) for row, real in zip(masked.places, masked.mask, strict=True)]
    alike = [
        set(np.flatnonzero(row)) == places for row, places in zip(by_dropout, hidden, strict=True)
    ]
    assert sum(alike) < 4


def test_devices_see_the_same():
    batch = long_rows(16, width=32)
    alone = jax.device_get(run(MASKING, batch, jax.random.key(1)))
    mesh = make_mesh()
    assert mesh.size == 8
    spread = jax.device_put(batch._replace(masked=None), batch_sharding(mesh))
    result = run(MASKING, spread, jax.random.key(1))
    assert not result.tokens.sharding.is_fully_replicated
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(result), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_rows_of_a_feed_are_masked():
    """Rows that fill a batch up have nothing to hide."""
    store = make_store(20)
    batch = collate(store, np.array([[3, -1, 7]]), 8, np.zeros(3, bool))
    one = jax.tree.map(lambda leaf: leaf[0], batch)
    after = jax.device_get(run(MASKING, one, jax.random.key(0)))
    assert after.masked.mask.any(axis=1).tolist() == [True, False, True]


def test_the_loss_is_the_mean_of_minus_log_p():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 7)).astype(np.float32)
    mask = np.array([[True, True, False], [True, False, False]])
    pieces = random.integers(0, 7, (2, 3)).astype(np.int32)
    wanted = [
        -np.log(np.exp(logits[r, m, pieces[r, m]]) / np.exp(logits[r, m]).sum())
        for r, m in zip(*np.nonzero(mask), strict=True)
    ]
    logits[~mask] = np.nan
    batch = batch_of([[(5, True)]] * 2)._replace(masked=Masked(pieces * 0, pieces, mask))

    def loss(logits):
        return masked_language_model(EncoderOutput({}, logits), None, batch).compute()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    assert float(value) == pytest.approx(np.mean(wanted), abs=1e-6)
    assert np.isfinite(gradient).all(), "what is not asked for has no gradient"
    with pytest.raises(ValueError, match="needs a masked batch"):
        masked_language_model(EncoderOutput({}, logits), None, batch._replace(masked=None))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rate": 0.0}, "a masking rate of 0.0"),
        ({"rate": 1.0}, "a masking rate of 1.0"),
        ({"vocab_size": 5}, "nothing to guess"),
    ],
)
def test_what_can_be_no_masking_is_refused(change, said):
    values = {"mask_id": MASK, "special": MASKING.special, "vocab_size": VOCABULARY}
    with pytest.raises(ValueError, match=said):
        Masking(**values | change)
