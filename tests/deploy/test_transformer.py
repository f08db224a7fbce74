"""The transformer student without JAX equals the one with it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.deploy.toys import MAX_LENGTH, TAGS, TOKENIZER, save_toy
from xdistil_jax.deploy.bundle import BundleError, load_bundle
from xdistil_jax.deploy.tagger import Tagger
from xdistil_jax.deploy.transformer import transformer_logits
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.models.transformer import TransformerSpec

OWN = EncoderSpec(
    TOKENIZER.vocab_size, 12, 2, 3, 20, positions=16, token_types=0, classes=len(TAGS),
    stacked=False,
)  # fmt: skip
SPECS = {
    "plain": OWN,
    "types": replace(OWN, token_types=2),
    "pairs": replace(OWN, token_types=2, separator=3),
    "roberta": replace(OWN, position_offset=2, token_types=1, norm_epsilon=1e-5),
    "xl": replace(OWN, pre_norm=True),
    "electra": replace(OWN, embedding_width=6),
    "tanh": replace(OWN, activation="gelu_tanh"),
    "relu": replace(OWN, activation="relu"),
}


@pytest.mark.parametrize("encoder", SPECS.values(), ids=SPECS)
def test_logits_equal_the_jax_student(tmp_path, encoder):
    spec = TransformerSpec(encoder, imitates=())
    params = save_toy(tmp_path / "student", spec, seed=1, kind="transformer")
    random = np.random.default_rng(0)
    tokens, lengths = random.integers(0, OWN.vocab_size, (5, 11)), np.array([11, 7, 1, 2, 0])
    tokens[:2, 4] = SPECS["pairs"].separator
    ours = transformer_logits(load_bundle(tmp_path / "student"), tokens, lengths)
    with jax.default_matmul_precision("highest"):
        theirs = jax.jit(build(spec).apply)(params, jnp.asarray(tokens), lengths).logits
    real = np.arange(11) < lengths[:, None]
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[real], np.asarray(theirs)[real], atol=1e-4, rtol=1e-4)


def test_it_tags_text(tmp_path):
    save_toy(tmp_path / "s", TransformerSpec(OWN, imitates=()), kind="transformer")
    found = Tagger.load(tmp_path / "s")(["Anna Berg fuhr nach Berlin. " * MAX_LENGTH, ""])
    assert found[0]
    assert not found[1]


def test_another_kind_is_named(tmp_path):
    save_toy(tmp_path / "s", kind="cnn")
    with pytest.raises(BundleError, match="kind: expected one of bilstm, transformer, found 'cnn'"):
        Tagger.load(tmp_path / "s")
