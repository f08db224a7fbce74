"""What encoders share: merged columns against NumPy."""

import jax.numpy as jnp
import numpy as np

from xdistil_jax.models.layers import merge_columns

LOGITS = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


def test_merged_columns_add_up_probabilities():
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    found = np.exp(merge_columns(jnp.asarray(LOGITS), ((3, 0), (), (1,), (2,))))
    np.testing.assert_allclose(found[..., 0], probabilities[..., [0, 3]].sum(-1), rtol=1e-5)
    np.testing.assert_allclose(found[..., 2:], probabilities[..., 1:3], rtol=1e-5)
    assert (found[..., 1] < 1e-3).all(), "of what the teacher doesn't know it says no"


def test_a_change_of_order_leaves_logits_as_they_are():
    np.testing.assert_array_equal(merge_columns(jnp.asarray(LOGITS), ()), LOGITS)
    order = (2, 0, 3, 1)
    found = merge_columns(jnp.asarray(LOGITS), tuple((number,) for number in order))
    np.testing.assert_array_equal(found, LOGITS[..., order])
