"""Losses equal their NumPy references, ignore padding, and leave as totals and counts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xdistil_jax.distill.losses import LOSSES
from xdistil_jax.types import Batch, EncoderOutput, Mean

B, T, D, C = 4, 5, 6, 3
MASKS = {
    "repr": "repr_mask",
    "repr_kl": "repr_mask",
    "logit": "logit_mask",
    "logit_all": "repr_mask",
    "logit_kl": "logit_mask",
    "ce": "label_mask",
}
GARBAGE = {"nan": np.nan, "infinity": np.inf, "huge": 3e38}

# That of hidden pieces has batches of its own: tests/distill/test_masking.py.
DISTILLED = [name for name in LOSSES if name != "mlm"]


def outputs(seed, layers=("layer_1", "layer_3")):
    random = np.random.default_rng(seed)
    hidden = {name: random.normal(size=(B, T, D)).astype(np.float32) for name in layers}
    return EncoderOutput(hidden, 3 * random.normal(size=(B, T, C)).astype(np.float32))


def batch(seed=2):
    random = np.random.default_rng(seed)
    masks = {name: random.random((B, T)) < 0.5 for name in set(MASKS.values())}
    labels = np.where(masks["label_mask"], random.integers(0, C, (B, T)), -1).astype(np.int32)
    tokens = np.zeros((B, T), np.int32)
    lengths = np.full(B, T, np.int32)
    return Batch(np.arange(B), tokens, lengths, masks["logit_mask"], labels=labels, **masks)


STUDENT, TEACHER, BATCH = outputs(0, ("layer_1", "layer_3", "unasked")), outputs(1), batch()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(name):
    """(total, count), one piece after the other, in float64."""
    s, t = (jax.tree.map(lambda leaf: leaf.astype(np.float64), each) for each in (STUDENT, TEACHER))
    values = []
    for at in np.argwhere(getattr(BATCH, MASKS[name])):
        at = tuple(at)
        layers = [(s.hidden[layer][at], t.hidden[layer][at]) for layer in t.hidden]
        if name == "repr":
            values.append(np.mean([np.mean((mine - its) ** 2) for mine, its in layers]))
        elif name == "repr_kl":
            p = [(softmax(its), softmax(mine)) for mine, its in layers]
            values.append(np.mean([np.sum(its * np.log(its / mine)) for its, mine in p]))
        elif name in ("logit", "logit_all"):
            values.append(np.mean((s.logits[at] - t.logits[at]) ** 2))
        elif name == "logit_kl":
            its, mine = softmax(t.logits[at]), softmax(s.logits[at])
            values.append(np.sum(its * np.log(its / mine)))
        else:
            values.append(-np.log(softmax(s.logits[at])[BATCH.labels[at]]))
    return np.sum(values), len(values)


@pytest.mark.parametrize("name", DISTILLED)
def test_losses_equal_their_numpy_references(name):
    with jax.numpy_dtype_promotion("strict"):
        mean = LOSSES[name](*jax.tree.map(jnp.asarray, (STUDENT, TEACHER, BATCH)))
        value = mean.compute()
    total, count = reference(name)
    assert mean.total.dtype == mean.count.dtype == value.dtype == jnp.float32
    np.testing.assert_allclose(mean.total, total, rtol=1e-5)
    assert int(mean.count) == count > 0
    np.testing.assert_allclose(value, total / count, rtol=1e-5)


def value_and_gradients(name, student, teacher):
    def value(student, teacher):
        with jax.numpy_dtype_promotion("strict"):
            return LOSSES[name](student, teacher, jax.tree.map(jnp.asarray, BATCH)).compute()

    return jax.value_and_grad(value, argnums=(0, 1))(student, teacher)


def spoil(output, mask, garbage):
    """Garbage wherever ``mask`` is false."""
    return jax.tree.map(lambda x: jnp.where(jnp.asarray(mask)[..., None], x, garbage), output)


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
@pytest.mark.parametrize("name", DISTILLED)
def test_losses_ignore_padding(name, side, garbage):
    mask = getattr(BATCH, MASKS[name])
    clean = value_and_gradients(name, *jax.tree.map(jnp.asarray, (STUDENT, TEACHER)))
    student = STUDENT if side == "teacher" else spoil(STUDENT, mask, garbage)
    teacher = TEACHER if side == "student" else spoil(TEACHER, mask, garbage)
    value, gradients = value_and_gradients(name, student, teacher)
    assert value == clean[0]
    for mine, its in zip(jax.tree.leaves(gradients), jax.tree.leaves(clean[1]), strict=True):
        assert np.array_equal(mine, its)
        assert not np.any(np.asarray(mine)[~mask])
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradients[0]))


@pytest.mark.parametrize("name", DISTILLED)
def test_nothing_under_the_mask_counts_as_nothing(name):
    empty = BATCH._replace(**{MASKS[name]: np.zeros((B, T), bool)})
    mean = LOSSES[name](STUDENT, TEACHER, empty)
    assert (float(mean.total), float(mean.count), float(mean.compute())) == (0.0, 0.0, 0.0)
    gradient = jax.grad(lambda s: LOSSES[name](s, TEACHER, empty).compute())(STUDENT)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_cross_entropy_needs_no_teacher():
    mean = LOSSES["ce"](STUDENT, None, BATCH)
    assert mean == LOSSES["ce"](STUDENT, TEACHER, BATCH)


def test_a_perfect_student_loses_nothing():
    for name in ("repr", "repr_kl", "logit", "logit_all", "logit_kl"):
        mean = LOSSES[name](TEACHER, TEACHER, BATCH)
        np.testing.assert_allclose(mean.total, 0.0, atol=1e-6)


values = arrays(np.float32, st.integers(1, 20), elements=st.floats(-100, 100, width=32))


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_merging_means_gives_the_mean_of_the_union(parts, random):
    masks = [np.array([random.random() < 0.6 for _ in part]) for part in parts]
    means = [Mean.of(*map(jnp.asarray, pair)) for pair in zip(parts, masks, strict=True)]
    merged = means[0]
    for mean in means[1:]:
        merged = merged.merge(mean)
    union = np.concatenate([part[mask] for part, mask in zip(parts, masks, strict=True)])
    assert int(merged.count) == len(union)
    expected = union.astype(np.float64).mean() if len(union) else 0.0
    np.testing.assert_allclose(merged.compute(), expected, rtol=1e-4, atol=1e-4)


def test_a_mean_passes_through_jit_and_gradients():
    total = jax.jit(partial(Mean.of))(jnp.ones((2, 3)), jnp.ones((2, 3), bool))
    assert float(total.compute()) == 1.0
    assert float(jax.grad(lambda c: Mean(c, c * 0).compute())(jnp.ones(()))) == 0.0
