"""The transformer student: its encoder's logits, and states of the teacher's width."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xdistil_jax import trees
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import abstract_params, build
from xdistil_jax.models.transformer import TransformerSpec

ENCODER = EncoderSpec(31, 16, 2, 4, 32, positions=8, token_types=0, classes=5, stacked=False)
SPEC = TransformerSpec(ENCODER, teacher_width=12, imitates=("layer_9",))
TOKENS, LENGTHS = jnp.arange(12).reshape(2, 6) + 3, jnp.array([6, 3])


@partial(jax.jit, static_argnames=("spec", "dtype"))
def forward(spec, params, dtype=jnp.float32):
    return build(spec).apply(params, TOKENS, LENGTHS, dtype=dtype)


def test_it_is_its_encoder_and_a_projection():
    params = build(SPEC).init(jax.random.key(0))
    found = forward(SPEC, params)
    inner = {name: below for name, below in params.items() if name != "projection"}
    plain = forward(ENCODER, inner)
    np.testing.assert_array_equal(found.logits, plain.logits)
    assert list(found.hidden) == ["layer_9"]
    own = params["projection"]["layer_9"]
    expected = np.asarray(plain.hidden["layer_2"]) @ np.asarray(own["kernel"])
    expected += np.asarray(own["bias"])
    np.testing.assert_allclose(found.hidden["layer_9"], expected, atol=1e-6)
    assert found.hidden["layer_9"].shape == (2, 6, 12)
    assert forward(SPEC, params, jnp.bfloat16).hidden["layer_9"].dtype == jnp.float32


@pytest.mark.parametrize("width", [12, 16], ids=["wider", "equal"])
def test_layers_are_imitated_from_the_top_down(width):
    """By a projection of its own each, and as they are where the widths are equal."""
    names = ("layer_9", "layer_8", "layer_7")
    spec = replace(SPEC, teacher_width=width, imitates=names)
    params = build(spec).init(jax.random.key(0))
    found = forward(spec, params).hidden
    inner = {name: below for name, below in params.items() if name != "projection"}
    plain = forward(ENCODER, inner).hidden
    assert found.keys() == set(names)
    assert ("projection" in params) == ("projection" in spec.groups) == (width != 16)
    for theirs, mine in zip(names, ("layer_2", "layer_1", "embedding"), strict=True):
        expected = np.asarray(plain[mine])
        if width != 16:
            own = params["projection"][theirs]
            expected = expected @ np.asarray(own["kernel"]) + np.asarray(own["bias"])
        np.testing.assert_allclose(found[theirs], expected, atol=1e-6, err_msg=theirs)


def test_more_layers_than_there_are_cannot_imitate():
    with pytest.raises(ValueError, match="of 2 layers and embeddings can't imitate 4 layers"):
        replace(SPEC, imitates=("layer_4", "layer_3", "layer_2", "layer_1"))


def test_groups_run_from_the_head_down_and_cover_everything():
    assert SPEC.groups == ("head", "projection", "layer_2", "layer_1", "embed")
    found = trees.assign(abstract_params(SPEC), SPEC.groups)
    assert set(found.values()) == set(SPEC.groups)


def test_stacked_layers_are_refused():
    with pytest.raises(ValueError, match=r"one by one: encoder\.stacked is True"):
        TransformerSpec(replace(ENCODER, stacked=True))
