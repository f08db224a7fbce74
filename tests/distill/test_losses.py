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
    "repr_cosine": "repr_mask",
    "repr_kld_keras": "repr_mask",
    "logit": "logit_mask",
    "logit_all": "repr_mask",
    "logit_log_odds": "logit_mask",
    "logit_log_odds_all": "repr_mask",
    "logit_log_prob": "logit_mask",
    "logit_log_prob_all": "repr_mask",
    "logit_kl": "logit_mask",
    "ce": "label_mask",
}
GARBAGE = {"nan": np.nan, "infinity": np.inf, "huge": 3e38}

# Attention has shapes and a mask of its own (test_attention.py), that of hidden pieces batches
# (test_masking.py).
DISTILLED = [name for name in LOSSES if name not in ("attention", "mlm")]


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


def kl(its, mine):
    return np.sum(softmax(its) * np.log(softmax(its) / softmax(mine)))


def cosine(its, mine):
    return 1 - its @ mine / np.linalg.norm(its) / np.linalg.norm(mine)


def kld_keras(its, mine):
    """``kullback_leibler_divergence(y_true, y_pred)`` of Keras 2.2.4."""
    its, mine = np.clip(its, 1e-7, 1), np.clip(mine, 1e-7, 1)
    return np.sum(its * np.log(its / mine))


def squared_error(its, mine):
    return np.mean((its - mine) ** 2)


def log_odds(logits):
    return np.log(softmax(logits) / (1 - softmax(logits)))


REPRESENTATION = {
    "repr": squared_error,
    "repr_kl": kl,
    "repr_cosine": cosine,
    "repr_kld_keras": kld_keras,
}
TARGETS = {
    "logit": lambda logits: logits,
    "logit_log_odds": log_odds,
    "logit_log_prob": lambda logits: np.log(softmax(logits)),
}


def reference(name):
    """(total, count), one piece after the other, in float64."""
    s, t = (jax.tree.map(lambda leaf: leaf.astype(np.float64), each) for each in (STUDENT, TEACHER))
    values = []
    for at in np.argwhere(getattr(BATCH, MASKS[name])):
        at = tuple(at)
        if name in REPRESENTATION:
            layers = [(t.hidden[layer][at], s.hidden[layer][at]) for layer in t.hidden]
            values.append(np.mean([REPRESENTATION[name](*pair) for pair in layers]))
        elif name == "logit_kl":
            values.append(kl(t.logits[at], s.logits[at]))
        elif name == "ce":
            values.append(-np.log(softmax(s.logits[at])[BATCH.labels[at]]))
        else:
            target = TARGETS[name.removesuffix("_all")]
            values.append(squared_error(target(t.logits[at]), s.logits[at]))
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
    for name in (*REPRESENTATION, "logit", "logit_all", "logit_kl"):
        mean = LOSSES[name](TEACHER, TEACHER, BATCH)
        np.testing.assert_allclose(mean.total, 0.0, atol=1e-6)


# --- what the paper's code says of representations, and what that does ------------------------


def of_coordinates(student, teacher):
    """KL as in Keras of one piece for each of [N D] vectors."""
    one = BATCH._replace(repr_mask=np.ones((1, 1), bool))
    outputs = (EncoderOutput({"layer": each[None, None]}, None) for each in (student, teacher))
    return LOSSES["repr_kld_keras"](*outputs, one).total


def test_kld_keras_is_its_formula_bit_for_bit():
    random = np.random.default_rng(5)
    edges = np.array([-1, 0, 1e-9, 1e-7, 0.25, 1 - 2**-24, 1, 1 + 2**-23, 9])
    values = np.concatenate([edges, random.normal(0, 0.5, 200)]).astype(np.float32)
    its, mine = (each.ravel() for each in np.meshgrid(values, values))
    found = np.asarray(jax.vmap(of_coordinates)(mine[:, None], its[:, None]))
    low, high = np.float32(1e-7), np.float32(1)
    y_true, y_pred = np.clip(its, low, high), np.clip(mine, low, high)
    ratio = y_true / y_pred
    # XLA's logarithm: NumPy's is another one, by some units in the last place.
    assert np.array_equal(found, y_true * np.asarray(jnp.log(ratio)))
    np.testing.assert_allclose(found, y_true * np.log(ratio), rtol=4e-7)
    assert found.dtype == np.float32


def test_kld_keras_never_pushes_a_student_down():
    """Its gradient is −t/s inside of the clip and 0 outside: above the teacher it pushes up, too,
    and where the student is below the clip nothing lifts it."""
    values = np.array([-2, -0.3, 0, 1e-6, 0.2, 0.6, 0.99, 1.3], np.float32)
    its, mine = (each.ravel() for each in np.meshgrid(values, values))
    gradient = np.asarray(jax.grad(of_coordinates)(jnp.asarray(mine), jnp.asarray(its)))
    inside = (mine > 1e-7) & (mine < 1)
    expected = np.where(inside, -np.clip(its, 1e-7, 1) / np.where(inside, mine, 1), 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert (gradient <= 0).all()
    assert (gradient[inside & (mine > its) & (its > 0)] < 0).all()
    assert not gradient[mine < 0].any()
    proper = jax.grad(lambda s: LOSSES["repr_kl"](s, TEACHER, BATCH).compute())(STUDENT)
    assert min(map(np.min, proper.hidden.values())) < 0 < max(map(np.max, proper.hidden.values()))


def test_kld_keras_likes_a_student_of_ones_better_than_the_teacher():
    its = np.random.default_rng(6).normal(0, 0.5, 768).astype(np.float32)
    assert float(of_coordinates(its, its)) == 0
    # Section 1.4 of the paper's facts has -101.2 for another draw.
    assert float(of_coordinates(np.ones_like(its), its)) == pytest.approx(-101, abs=15)


def test_cosine_knows_no_length_and_has_a_gradient_at_nothing():
    longer = STUDENT._replace(hidden={name: 7 * x for name, x in STUDENT.hidden.items()})
    mean, same = (LOSSES["repr_cosine"](s, TEACHER, BATCH) for s in (STUDENT, longer))
    np.testing.assert_allclose(mean.total, same.total, rtol=1e-5)
    opposite = TEACHER._replace(hidden={name: -x for name, x in TEACHER.hidden.items()})
    assert float(LOSSES["repr_cosine"](opposite, TEACHER, BATCH).compute()) == pytest.approx(2)
    nothing = jax.tree.map(jnp.zeros_like, STUDENT)
    value, gradient = value_and_gradients(
        "repr_cosine", nothing, jax.tree.map(jnp.asarray, TEACHER)
    )
    assert value == pytest.approx(1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# --- what logits are compared with -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # log(p/(1 − p)) of a sure piece: p rounds to 1, and of the others to 0.
        ("logit_log_odds", [90 - np.log(2), -90, -90]),
        ("logit_log_prob", [0, -90, -90]),
        ("logit", [90.0, 0, 0]),
    ],
)
def test_targets_of_a_sure_teacher_are_finite_and_right(name, expected):
    logits = np.zeros((B, T, C), np.float32)
    logits[..., 0] = 90
    with np.errstate(divide="ignore"):
        assert not np.isfinite(log_odds(logits)).all()
    target = np.broadcast_to(np.array(expected, np.float32), logits.shape)
    at_target = EncoderOutput({}, target), EncoderOutput({}, logits)
    value, gradients = value_and_gradients(name, *at_target)
    assert value == pytest.approx(0, abs=1e-9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    off = EncoderOutput({}, target + np.float32(2))
    assert float(LOSSES[name](off, at_target[1], BATCH).compute()) == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize("name", ["logit_log_odds", "logit_log_prob"])
def test_targets_are_of_probabilities_alone(name):
    shifted = TEACHER._replace(logits=TEACHER.logits + np.float32(5))
    one, other = (LOSSES[name](STUDENT, each, BATCH).total for each in (TEACHER, shifted))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    raw = [LOSSES["logit"](STUDENT, each, BATCH).total for each in (TEACHER, shifted)]
    assert abs(raw[0] - raw[1]) > 1


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
