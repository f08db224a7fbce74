"""The attention loss: its NumPy reference, heads of equal and other numbers, and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.distill.test_losses import BATCH as ANY
from tests.distill.test_losses import GARBAGE, B, T
from xdistil_jax.distill.losses import attention
from xdistil_jax.types import EncoderOutput

NAMES = ("layer_4", "layer_3")
# The first row's state of [CLS] alone is imitated, the last row is labelled.
LENGTHS = np.clip(np.arange(T, T - B, -1), 2, T).astype(np.int32)
REAL = np.arange(T) < LENGTHS[:, None]
REAL[-1] = False
BATCH = ANY._replace(
    lengths=LENGTHS, repr_mask=REAL & ((np.arange(T) == 0) | (np.arange(B) > 0)[:, None])
)


def outputs(seed, heads):
    random = np.random.default_rng(seed)
    weights = {n: random.dirichlet(np.ones(T), (B, heads, T)).astype(np.float32) for n in NAMES}
    return EncoderOutput({}, np.zeros((B, T, 1), np.float32), weights)


STUDENT, TEACHER, MORE_HEADS = outputs(0, 2), outputs(1, 2), outputs(2, 6)


def reference(student, teacher, mask):
    """(total, count), one pair of pieces after the other, in float64."""
    values = []
    for row in range(B):
        real = np.flatnonzero(mask[row])
        for query in real:
            for key in real:
                errors = []
                for name in NAMES:
                    mine = student.attention[name][row, :, query, key].astype(np.float64)
                    its = teacher.attention[name][row, :, query, key].astype(np.float64)
                    if len(mine) != len(its):
                        mine, its = mine.mean(), its.mean()
                    errors.append(np.mean((mine - its) ** 2))
                values.append(np.mean(errors))
    return np.sum(values), len(values)


@pytest.mark.parametrize("teacher", [TEACHER, MORE_HEADS], ids=["equal", "other"])
def test_it_equals_its_numpy_reference(teacher):
    with jax.numpy_dtype_promotion("strict"):
        mean = attention(*jax.tree.map(jnp.asarray, (STUDENT, teacher, BATCH)))
    total, count = reference(STUDENT, teacher, REAL)
    np.testing.assert_allclose(mean.total, total, rtol=1e-5)
    assert int(mean.count) == count > 0
    assert mean.total.dtype == mean.count.dtype == jnp.float32


def test_heads_of_equal_number_are_compared_one_by_one():
    turned = {name: weights[:, ::-1] for name, weights in STUDENT.attention.items()}
    assert float(attention(STUDENT, STUDENT, BATCH).total) == 0
    assert float(attention(STUDENT._replace(attention=turned), STUDENT, BATCH).total) > 0.01


def test_means_over_heads_are_compared_where_the_numbers_differ():
    doubled = {name: np.repeat(weights, 3, axis=1) for name, weights in STUDENT.attention.items()}
    mean = attention(STUDENT, STUDENT._replace(attention=doubled), BATCH)
    np.testing.assert_allclose(mean.total, 0, atol=1e-9)


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("teacher", [TEACHER, MORE_HEADS], ids=["equal", "other"])
def test_padding_is_ignored_as_query_and_as_key(teacher, garbage):
    mask = jnp.asarray(REAL)
    pairs = (mask[:, :, None] & mask[:, None, :])[:, None]

    def spoil(output):
        return jax.tree.map(lambda x: jnp.where(pairs, x, garbage), output.attention)

    def value(student, teacher):
        return attention(
            STUDENT._replace(attention=student), TEACHER._replace(attention=teacher), BATCH
        ).compute()

    clean = jax.value_and_grad(value)(STUDENT.attention, teacher.attention)
    found = jax.value_and_grad(value)(spoil(STUDENT), spoil(teacher))
    assert found[0] == clean[0]
    for name in NAMES:
        np.testing.assert_array_equal(found[1][name], clean[1][name])
        outside = ~np.broadcast_to(pairs, found[1][name].shape)
        assert not np.any(np.asarray(found[1][name])[outside])
        assert np.any(found[1][name])


def test_nothing_under_the_mask_counts_as_nothing():
    empty = BATCH._replace(repr_mask=np.zeros((B, T), bool))
    mean = attention(STUDENT, TEACHER, empty)
    assert (float(mean.total), float(mean.count), float(mean.compute())) == (0.0, 0.0, 0.0)
