"""Masked language models: equal to torch's, there and back, and [B T V] is never made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from xdistil_jax.distill.masking import masked_language_model
from xdistil_jax.models.checkpoints import load_encoder
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.models.masked_lm import (
    HEADS,
    MaskedLMSpec,
    load_masked_lm,
    save_masked_lm,
)
from xdistil_jax.models.tensors import CheckpointError, read_folder, write_tensors
from xdistil_jax.trees import leaves
from xdistil_jax.types import Batch, Masked

KEY = jax.random.key(0)
SIZES = {
    "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 12, "max_position_embeddings": 20,
}  # fmt: skip
CONFIGS = {
    "bert": transformers.BertConfig(**SIZES),
    "roberta": transformers.RobertaConfig(**SIZES, pad_token_id=1),
    "xlm-roberta": transformers.XLMRobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=40, dim=8, n_layers=2, n_heads=2, hidden_dim=12, max_position_embeddings=20
    ),
}
SPEC = EncoderSpec(40, 8, 2, 2, 12, positions=16, classes=5)


def torch_model(family):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    model = transformers.AutoModelForMaskedLM.from_config(CONFIGS[family]).eval()
    for name, leaf in model.named_parameters():
        # Torch starts biases and norms at values that hide mistakes.
        if leaf.ndim == 1:
            torch.nn.init.normal_(leaf, mean=float("orm" in name), std=0.3)
    return model


def made(lengths=(12, 3, 9), width=12, most=3):
    """A batch with some pieces hidden, which row 1 has one of."""
    random = np.random.default_rng(0)
    tokens = random.integers(5, 40, (len(lengths), width)).astype(np.int32)
    real = np.arange(width) < np.array(lengths)[:, None]
    tokens[~real] = 1
    places = np.stack([random.permutation(length)[:most] for length in np.maximum(lengths, most)])
    mask = np.arange(most) < np.array([most, 1, most])[:, None]
    masked = Masked(
        places.astype(np.int32), random.integers(5, 40, places.shape).astype(np.int32), mask
    )
    empty = np.zeros(real.shape, bool)
    return Batch(
        np.arange(3), tokens, np.array(lengths, np.int32), real, tokens, empty, empty, empty,
        masked=masked,
    )  # fmt: skip


def logits_of(spec, params, batch, **options):
    apply = jax.jit(build(spec).apply, static_argnames="dtype")
    return apply(params, batch.tokens, batch.lengths, places=batch.masked.places, **options)


def torch_loss(model, batch):
    """(its logits at the hidden places, its own loss over them)."""
    import torch

    labels = np.full(batch.tokens.shape, -100, np.int64)
    rows, slots = np.nonzero(batch.masked.mask)
    labels[rows, batch.masked.places[rows, slots]] = batch.masked.pieces[rows, slots]
    real = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    with torch.no_grad():
        output = model(
            torch.tensor(batch.tokens, dtype=torch.long),
            attention_mask=torch.tensor(real),
            labels=torch.tensor(labels),
        )
    logits = np.take_along_axis(output.logits.numpy(), batch.masked.places[..., None], axis=1)
    return logits, float(output.loss)


@pytest.mark.parametrize("family", HEADS)
def test_loss_and_logits_equal_transformers(family, tmp_path):
    model, batch = torch_model(family), made()
    model.save_pretrained(tmp_path)
    theirs, loss = torch_loss(model, batch)
    spec, params = load_masked_lm(tmp_path, key=KEY)
    output = logits_of(spec, params, batch)
    mask = batch.masked.mask
    np.testing.assert_allclose(output.logits[mask], theirs[mask], atol=1e-5)
    mean = masked_language_model(output, None, batch)
    assert float(mean.count) == mask.sum() == 7
    assert float(mean.compute()) == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("family", HEADS)
def test_what_is_saved_is_loaded_by_transformers_and_by_us(family, tmp_path):
    first, second, batch = tmp_path / "first", tmp_path / "second", made()
    torch_model(family).save_pretrained(first)
    spec, params = load_masked_lm(first, key=KEY)
    changed = jax.tree.map(lambda leaf: leaf + np.float32(0.01), params)
    save_masked_lm(second, spec, changed)
    model = transformers.AutoModelForMaskedLM.from_pretrained(second).eval()
    assert type(model).__name__ == HEADS[family][0]
    theirs, _ = torch_loss(model, batch)
    output = logits_of(spec, changed, batch)
    mask = batch.masked.mask
    np.testing.assert_allclose(output.logits[mask], theirs[mask], atol=1e-5)
    again = load_masked_lm(second, key=KEY)
    assert again[0] == spec
    for (path, ours), (_, back) in zip(leaves(changed), leaves(again[1]), strict=True):
        np.testing.assert_array_equal(ours, back, err_msg=path)
    # As a teacher: the body as it was, and a fresh head.
    encoder, body, labels = load_encoder(second, 5, key=KEY)
    assert (labels, encoder) == (None, spec.encoder(5))
    del body["head"]
    for path, leaf in leaves(body):
        np.testing.assert_array_equal(leaf, dict(leaves(changed))[path], err_msg=path)


def test_a_fresh_model_goes_to_transformers(tmp_path):
    pytest.importorskip("torch")
    spec, batch = MaskedLMSpec.of(SPEC), made()
    params = jax.tree.map(np.asarray, build(spec).init(KEY))
    save_masked_lm(tmp_path, spec, params)
    model, told = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _, loss = torch_loss(model.eval(), batch)
    ours = masked_language_model(logits_of(spec, params, batch), None, batch).compute()
    assert float(ours) == pytest.approx(loss, abs=1e-5)
    assert float(ours) == pytest.approx(np.log(40), abs=0.2)
    transformers.AutoModel.from_pretrained(tmp_path)


def test_a_checkpoint_without_a_head_gets_a_fresh_one(tmp_path):
    save_masked_lm(tmp_path, *_fresh())
    tensors = {name: np.array(leaf) for name, leaf in read_folder(tmp_path).items()}
    head = [name for name in tensors if name.startswith("cls.")]
    assert len(head) == 5
    body = {name: leaf for name, leaf in tensors.items() if name not in head}
    write_tensors(tmp_path / "model.safetensors", body)
    spec, params = load_masked_lm(tmp_path, key=jax.random.key(3))
    fresh = build(spec).init(jax.random.key(3))["head"]
    for path, leaf in leaves(params["head"]):
        np.testing.assert_array_equal(leaf, dict(leaves(fresh))[path], err_msg=path)
    write_tensors(tmp_path / "model.safetensors", {**body, head[0]: tensors[head[0]]})
    with pytest.raises(CheckpointError, match=r"its head for masked pieces lacks cls\.predictions"):
        load_masked_lm(tmp_path, key=KEY)


def _fresh():
    spec = MaskedLMSpec.of(SPEC)
    return spec, jax.tree.map(np.asarray, build(spec).init(KEY))


def test_families_with_another_head_are_refused():
    with pytest.raises(
        ValueError, match="a electra can't be pretrained on masked pieces, only one"
    ):
        MaskedLMSpec.of(EncoderSpec(40, 8, 2, 2, 12, family="electra"))


def test_logits_are_made_at_the_hidden_places_only():
    """Of a vocabulary of 7,919 nothing as large as [B T V] stands in the program."""
    spec = MaskedLMSpec.of(EncoderSpec(7919, 8, 1, 2, 8, positions=32, classes=1))
    params = build(spec).init(KEY)
    tokens, lengths = jnp.ones((4, 32), jnp.int32), jnp.full(4, 32)

    def loss(params):
        places = jnp.zeros((4, 5), jnp.int32)
        return build(spec).apply(params, tokens, lengths, places=places).logits.sum()

    largest = 0

    def walk(jaxpr):
        nonlocal largest
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                shape = variable.aval.shape
                if 7919 in shape:
                    largest = max(largest, int(np.prod(shape)))
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
                walk(getattr(inner, "jaxpr", inner)) if hasattr(inner, "eqns") else None

    walk(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    assert 0 < largest <= 4 * 5 * 7919 < 4 * 32 * 7919
