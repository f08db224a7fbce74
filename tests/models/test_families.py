"""Every family equals torch's transformers, in both forms, and goes back to it unchanged."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.references.make import (
    CASES,
    LABELS,
    ROOT,
    random_batch,
    random_model,
    run_torch,
)
from tests.models.test_encoder import assert_close, forward, worst
from xdistil_jax.models.checkpoints import load_encoder, save_encoder
from xdistil_jax.models.functional import build
from xdistil_jax.models.layers import stack_layers, unstack_layers
from xdistil_jax.trees import assign, leaves

EVERY = pytest.mark.parametrize("case", CASES)


def stored(case):
    """(batch, what torch gave for it) of the stored reference."""
    arrays = dict(np.load(ROOT / case / "outputs.npz", allow_pickle=False))
    return [arrays.pop(name) for name in ("tokens", "lengths", "token_types")], arrays


@EVERY
@pytest.mark.parametrize("stacked", [True, False])
def test_equals_the_stored_references(case, stacked):
    batch, theirs = stored(case)
    spec, params, labels = load_encoder(ROOT / case, stacked=stacked)
    assert labels == LABELS
    assert_close(forward(spec, params, *batch), theirs, batch[1], 1e-4)


@EVERY
def test_equals_torch(case, tmp_path):
    pytest.importorskip("torch")
    model = random_model(1, case)
    model.save_pretrained(tmp_path)
    batch = random_batch(1, (16, 1, 9), model.config.vocab_size)
    spec, params, _ = load_encoder(tmp_path)
    assert spec.longest == 16
    assert_close(forward(spec, params, *batch), run_torch(model, *batch), batch[1], 1e-4)


@EVERY
def test_bf16_is_near(case):
    batch, theirs = stored(case)
    spec, params, _ = load_encoder(ROOT / case)
    far = worst(forward(spec, params, *batch, dtype=jnp.bfloat16), theirs, batch[1])
    real = np.arange(16) < batch[1][:, None]
    for name, gap in far.items():
        # The largest distance, against the largest value: one rounding is 0.4 %.
        assert gap <= 2e-2 * np.abs(theirs[name][real]).max(), name


@EVERY
@pytest.mark.parametrize("stacked", [True, False])
def test_transformers_loads_what_we_save(case, stacked, tmp_path):
    pytest.importorskip("torch")
    import transformers

    spec, params, labels = load_encoder(ROOT / case, stacked=stacked)
    params = jax.tree.map(lambda leaf: leaf * 1.25, params)
    save_encoder(tmp_path, spec, params, labels)
    model, report = transformers.AutoModelForTokenClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values())
    assert tuple(model.config.id2label.values()) == labels
    batch = random_batch(2, (16, 1, 5), spec.vocab_size)
    ours = forward(spec, params, *batch)
    assert_close(ours, run_torch(model.eval(), *batch), batch[1], 1e-4)


@EVERY
def test_round_trip_changes_nothing(case, tmp_path):
    spec, params, labels = load_encoder(ROOT / case)
    save_encoder(tmp_path, spec, params, labels)
    again = load_encoder(tmp_path)
    assert again.spec == spec
    assert dict(leaves(again.params)).keys() == dict(leaves(params)).keys()
    for (path, one), (_, other) in zip(leaves(again.params), leaves(params), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=path)


@EVERY
@pytest.mark.parametrize("task", ["Model", "ForMaskedLM"])
def test_base_checkpoints_get_a_fresh_head(case, task, tmp_path):
    pytest.importorskip("torch")
    model = random_model(3, case, task)
    model.save_pretrained(tmp_path)
    spec, params, labels = load_encoder(tmp_path, 3, key=jax.random.key(0))
    assert labels is None
    assert params["head"]["kernel"].shape == (spec.width, 3)
    batch = random_batch(1, (16, 1, 9), spec.vocab_size)
    theirs = run_torch(model, *batch)
    ours = forward(spec, params, *batch)
    last = spec.hidden_names[-1]
    for name in ("embedding", last):
        real = np.arange(16) < batch[1][:, None]
        assert np.abs(np.asarray(ours[name]) - theirs[name])[real].max() < 1e-4


@EVERY
def test_groups_cover_every_parameter_once(case):
    for stacked in (True, False):
        spec, params, _ = load_encoder(ROOT / case, stacked=stacked)
        assert assign(params, spec.groups).keys() == dict(leaves(params)).keys()
    back = stack_layers(unstack_layers(load_encoder(ROOT / case).params))
    assert jax.tree.structure(back) == jax.tree.structure(load_encoder(ROOT / case).params)


@EVERY
def test_padding_reaches_nothing_and_empty_rows_are_finite(case):
    (tokens, _, types), _ = stored(case)
    spec, params, _ = load_encoder(ROOT / case)
    lengths = np.array([9, 1, 0, 12], np.int32)
    real = np.arange(16) < lengths[:, None]
    one = forward(spec, params, tokens, lengths, types)
    other = forward(spec, params, np.where(real, tokens, 3), lengths, np.where(real, types, 0))
    for name, states in one.items():
        assert np.isfinite(states).all(), name
        np.testing.assert_array_equal(states[real], other[name][real], err_msg=name)
    short = forward(spec, params, tokens[:, :12], lengths, types[:, :12])
    assert_close(short, {n: np.asarray(s)[:, :12] for n, s in one.items()}, lengths, 1e-5)


# A minute and a half of compilation: one of them stands for all where time counts.
@pytest.mark.parametrize(
    "case", ["bert", *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c != "bert")]
)
def test_trains_with_dropout(case):
    (tokens, lengths, types), _ = stored(case)
    spec, params, _ = load_encoder(ROOT / case)
    spec = replace(spec, dropout=0.3)

    def loss(params, key):
        return jnp.sum(build(spec).apply(params, tokens, lengths, types, key=key).logits ** 2)

    slope = jax.jit(jax.grad(loss))(params, jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    still = [path for path, leaf in leaves(slope) if not np.any(leaf)]
    assert not still, "no gradient reaches these"
    assert loss(params, jax.random.key(0)) != loss(params, jax.random.key(1))
