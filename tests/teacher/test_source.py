"""Teachers as the step sees them: the cache gives what the teacher itself gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.teacher.toys import (
    LAYERS,
    SETTINGS,
    SPEC,
    build_toy,
    make_params,
    make_store,
    random_rows,
)
from xdistil_jax.distill.losses import LOSSES
from xdistil_jax.teacher.source import OnlineTeacher, Teacher
from xdistil_jax.types import Batch, EncoderOutput

STORE = make_store(random_rows(40))
PARAMS = make_params()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return build_toy(tmp_path_factory.mktemp("cache"), STORE)


def make_batch(rows: np.ndarray, width: int, kept: np.ndarray | None = None) -> Batch:
    tokens, lengths = np.zeros((len(rows), width), np.int32), np.zeros(len(rows), np.int32)
    for slot, row in enumerate(rows):
        if row >= 0:
            pieces = STORE.tokens[STORE.offsets[row] : STORE.offsets[row + 1]]
            tokens[slot, : len(pieces)], lengths[slot] = pieces, len(pieces)
    if kept is not None:
        tokens = np.argsort(kept)[tokens].astype(np.int32)
    mask = np.arange(width) < lengths[:, None]
    return Batch(rows, tokens, lengths, mask, tokens, mask, mask, mask)


def ask(teacher: Teacher, rows: np.ndarray, batch: Batch) -> EncoderOutput:
    lookup = jax.jit(teacher.lookup)
    streamed = teacher.stream(rows, batch.tokens.shape[1])
    return jax.tree.map(np.asarray, lookup(teacher.arrays, streamed, batch))


ROWS = np.array([3, 17, -1, 0, 39, 3])


@pytest.mark.parametrize("codec", ["int8", "pca-16"])
def test_coarser_codecs_are_near_the_online_teacher(tmp_path, codec):
    """With as many coordinates as the states have, a basis loses nothing but by int8."""
    cache = build_toy(tmp_path, STORE, settings=dataclasses.replace(SETTINGS, codec=codec))
    batch = make_batch(ROWS, 40)
    online, cached = (
        ask(OnlineTeacher(SPEC, PARAMS, None, LAYERS), ROWS, batch),
        ask(cache, ROWS, batch),
    )
    real = np.asarray(batch.repr_mask)
    for layer in LAYERS:
        ours, theirs = cached.hidden[layer][real], online.hidden[layer][real]
        assert ours.dtype == np.float32
        error = np.linalg.norm(ours - theirs, axis=1)
        # No coordinate is larger than the whole state, measured from the mean.
        longest = np.linalg.norm(theirs - theirs.mean(0), axis=1) + np.linalg.norm(theirs, axis=1)
        assert error.max() > 0
        assert (error <= np.sqrt(16) * longest / 252 + 1e-4).all()
    np.testing.assert_allclose(cached.logits[real], online.logits[real], rtol=2.0**-10, atol=1e-5)


@pytest.mark.parametrize("cut", [False, True])
def test_cache_and_online_teacher_are_equal_up_to_rounding(cache, cut):
    kept = np.random.default_rng(0).permutation(60).astype(np.int32) if cut else None
    batch = make_batch(ROWS, 40, kept)
    online = ask(OnlineTeacher(SPEC, PARAMS, kept, LAYERS), ROWS, batch)
    cached = ask(cache, ROWS, batch)
    real = np.asarray(batch.repr_mask)
    assert online.hidden.keys() == cached.hidden.keys() == set(LAYERS)
    for layer in LAYERS:
        ours, theirs = cached.hidden[layer][real], online.hidden[layer][real]
        assert ours.dtype == theirs.dtype == np.float32
        assert (np.abs(ours - theirs) <= np.abs(theirs) * 2.0**-8 + 1e-5).all()
        assert np.abs(theirs).max() > 1
    ours, theirs = cached.logits[real], online.logits[real]
    assert ours.dtype == theirs.dtype == np.float32
    assert (np.abs(ours - theirs) <= np.abs(theirs) * 2.0**-11 + 1e-5).all()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"ce", "mlm", "attention"}))
def test_losses_are_equal_with_cache_and_online_teacher(cache, name):
    batch = make_batch(ROWS, 40)
    online = ask(OnlineTeacher(SPEC, PARAMS, None, LAYERS), ROWS, batch)
    cached = ask(cache, ROWS, batch)
    dice = np.random.default_rng(0)
    student = jax.tree.map(lambda leaf: leaf + dice.normal(size=leaf.shape).astype("f"), online)
    ours, theirs = (LOSSES[name](student, teacher, batch) for teacher in (cached, online))
    assert ours.count == theirs.count > 0
    # Rounding errs by 2**-9 of each value, and errors of many cancel out.
    np.testing.assert_allclose(ours.total, theirs.total, rtol=5e-3)
    turned = jax.tree.map(lambda leaf: leaf[..., ::-1], cached)
    assert abs(LOSSES[name](student, turned, batch).total / theirs.total - 1) > 5e-2


def test_no_gradient_reaches_the_online_teacher():
    teacher, batch = OnlineTeacher(SPEC, PARAMS, None, LAYERS), make_batch(ROWS, 40)

    def total(params):
        output = teacher.lookup({"params": params, "kept": None}, (), batch)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(output))

    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.grad(total)(PARAMS)))


def test_equal_lookups_share_a_program(cache):
    teachers = [OnlineTeacher(SPEC, make_params(seed), None, LAYERS) for seed in (0, 1)]
    assert teachers[0].lookup == teachers[1].lookup
    assert len({teacher.lookup for teacher in teachers}) == 1
    assert hash(cache.lookup) == hash(cache.lookup.__class__(LAYERS, "bf16"))
    assert teachers[0].stream(ROWS, 40) == ()


def test_stream_keeps_leading_axes_and_gives_zeros_where_nothing_is(cache):
    rows = np.array([[3, -1, 17], [0, 39, -1]])
    streamed = cache.stream(rows, 48)
    flat = cache.stream(rows.reshape(-1), 48)
    assert streamed["logits"].shape == (2, 3, 48, 7)
    assert streamed["hidden"]["layer_2"].shape == (2, 3, 48, 16)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.reshape(b.shape), b), streamed, flat)
    lengths = np.where(rows < 0, 0, STORE.lengths[rows])
    padding = np.arange(48) >= lengths[..., None]
    for leaf in jax.tree.leaves(streamed):
        assert (leaf[padding] == 0).all()
        assert (leaf[~padding] != 0).any(axis=-1).all()


def test_a_width_that_is_too_small_is_refused(cache):
    row = int(np.argmax(STORE.lengths))
    with pytest.raises(ValueError, match=rf"row {row} has {STORE.lengths[row]} pieces.* width, 16"):
        cache.stream(np.array([row]), 16)


def test_only_rows_minus_one_stream_as_zeros(cache):
    streamed = cache.stream(np.full(2, -1), 16)
    assert all(leaf.shape[:2] == (2, 16) and not leaf.any() for leaf in jax.tree.leaves(streamed))
