"""Attention as it is returned: torch's ``output_attentions``, in both forms of an encoder."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.references.make import LABELS, random_batch, random_model
from tests.models.test_encoder import SPEC as ENCODER
from tests.models.test_encoder import random_params
from xdistil_jax.models.checkpoints import load_encoder
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.models.layers import unstack_layers
from xdistil_jax.models.transformer import TransformerSpec

BATCH = random_batch(1, (13, 1, 6))


def given(spec, params, batch=BATCH):
    with jax.default_matmul_precision("highest"):
        return jax.jit(build(spec).apply)(params, *batch)


@pytest.mark.parametrize("case", ["bert", "xlm-roberta-xl", "distilbert"])
@pytest.mark.parametrize("stacked", [True, False])
def test_equals_torch(tmp_path, case, stacked):
    torch = pytest.importorskip("torch")
    model = random_model(1, case)
    model.set_attn_implementation("eager")
    model.save_pretrained(tmp_path)
    spec, params, _ = load_encoder(tmp_path, len(LABELS), stacked=stacked)
    tokens, lengths, _ = random_batch(1, (13, 1, 6), model.config.vocab_size)
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    tokens = np.where(mask, tokens, model.config.pad_token_id or 0)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
            output_attentions=True,
        ).attentions
    spec = replace(spec, attention=spec.hidden_names[1:], outputs=())
    output = given(spec, params, (tokens, lengths))
    assert output.hidden == {}
    assert list(output.attention) == list(spec.hidden_names[1:])
    for ours, its in zip(output.attention.values(), theirs, strict=True):
        assert ours.dtype == jnp.float32
        assert ours.shape == its.shape
        rows = mask[:, None, :, None] & mask[:, None, None, :]
        np.testing.assert_allclose(ours, np.where(rows, its, ours), atol=1e-5)
        # Of a real query, nothing goes to padding, and all goes somewhere.
        real = np.broadcast_to(mask[:, None], ours.shape[:3])
        np.testing.assert_allclose(np.where(rows, ours, 0).sum(-1)[real], 1, atol=1e-5)


def test_it_is_given_only_where_it_is_asked_for():
    params = random_params(ENCODER)
    assert given(ENCODER, params).attention is None
    one = replace(ENCODER, attention=("layer_2",))
    alone = replace(one, stacked=False)
    found = given(one, params).attention
    again = given(alone, unstack_layers(params)).attention
    assert list(found) == list(again) == ["layer_2"]
    np.testing.assert_allclose(found["layer_2"], again["layer_2"], atol=1e-6)
    with pytest.raises(ValueError, match=r"attention: no layer 'layer_3'; there are 2"):
        replace(ENCODER, attention=("layer_3",))
    with pytest.raises(ValueError, match="attention: no layer 'embedding'"):
        replace(ENCODER, attention=("embedding",))


def test_a_student_gives_it_under_its_teachers_names():
    own = EncoderSpec(61, 16, 3, 2, 32, positions=16, classes=5, stacked=False)
    spec = TransformerSpec(own, 12, ("layer_9",), attends=("layer_9", "layer_8"))
    params = build(spec).init(jax.random.key(0))
    found = given(spec, params).attention
    inner = {name: below for name, below in params.items() if name != "projection"}
    plain = given(replace(own, attention=own.hidden_names[1:]), inner).attention
    assert found.keys() == {"layer_9", "layer_8"}
    np.testing.assert_array_equal(found["layer_9"], plain["layer_3"])
    np.testing.assert_array_equal(found["layer_8"], plain["layer_2"])
    with pytest.raises(ValueError, match="a student of 3 layers has no more attention"):
        replace(spec, attends=("a", "b", "c", "d"))
