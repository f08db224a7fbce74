"""The small table loses no more than it must (Eckart and Young); a factored one is one table."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xdistil_jax import trees
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.embeddings import join_embedding, start_embedding, svd_directions
from xdistil_jax.models.functional import build

TABLE = np.random.default_rng(0).standard_normal((200, 24)).astype(np.float32)
TABLE *= np.linspace(3, 0.1, 24, dtype=np.float32)


def svd_table(table, rank, **options):
    return table @ svd_directions(table, rank, **options)


@pytest.mark.parametrize("rank", [1, 7, 24])
def test_reconstruction_error_is_the_optimum(rank):
    small = svd_table(TABLE, rank)
    assert small.shape == (200, rank)
    assert small.dtype == np.float32
    back = np.linalg.lstsq(small.astype(np.float64), TABLE.astype(np.float64), rcond=None)[0]
    error = np.linalg.norm(TABLE - small @ back)
    optimum = np.sqrt((np.linalg.svd(TABLE.astype(np.float64))[1][rank:] ** 2).sum())
    assert error == pytest.approx(optimum, rel=1e-5, abs=1e-4)


def test_columns_are_left_vectors_times_singular_values():
    small = svd_table(TABLE, 5).astype(np.float64)
    values = np.linalg.svd(TABLE.astype(np.float64))[1][:5]
    assert np.allclose(small.T @ small, np.diag(values**2), atol=1e-3 * values[0])


def test_inner_products_are_kept_at_full_rank():
    full = svd_table(TABLE, 24)
    assert np.allclose(full @ full.T, TABLE @ TABLE.T, atol=1e-3)


def test_blocks_and_row_order_do_not_matter():
    whole = svd_table(TABLE, 6)
    assert np.allclose(svd_table(TABLE, 6, rows=33), whole, atol=1e-4)
    order = np.random.default_rng(1).permutation(200)
    assert np.allclose(svd_table(TABLE[order], 6), whole[order], atol=1e-4)


def test_signs_are_settled():
    small = svd_table(TABLE, 6)
    right = np.linalg.lstsq(small, TABLE, rcond=None)[0]
    assert (right[np.arange(6), np.abs(right).argmax(1)] > 0).all()


@pytest.mark.parametrize("rank", [0, 25])
def test_impossible_rank_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank {rank} .*expected 1 to 24"):
        svd_table(TABLE, rank)


PLAIN = BiLSTMSpec(200, 6, 8, teacher_width=16, dropout=0.0)
FACTORED = replace(PLAIN, source_width=24)
TOKENS, LENGTHS = np.arange(24).reshape(4, 6) * 7, np.array([6, 1, 3, 5])


def start(spec, *, scale=1.0):
    params = build(spec).init(jax.random.key(0))
    return start_embedding(params, TABLE, scale=scale, projected=bool(spec.source_width))


def logits(spec, params):
    return build(spec).apply(params, TOKENS, LENGTHS).logits


@pytest.mark.parametrize("scale", [0.0, 1.0, 0.3])
def test_the_start_is_the_svd_at_its_scale(scale):
    table = start(PLAIN, scale=scale)["embed"]["table"]
    small = svd_table(TABLE, 6)
    assert table.std() == pytest.approx(scale or small.std(), rel=1e-5)
    np.testing.assert_allclose(table / table.std(), small / small.std(), atol=1e-5)


def test_a_factored_embedding_starts_as_the_plain_one_and_joins_into_it():
    plain, factored = start(PLAIN), start(FACTORED)
    assert trees.assign(plain, PLAIN.groups)
    np.testing.assert_allclose(logits(PLAIN, plain), logits(FACTORED, factored), atol=1e-5)
    moved = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), factored
    )
    joined = join_embedding(moved)
    assert jax.tree.map(np.shape, joined) == jax.tree.map(np.shape, plain)
    np.testing.assert_allclose(logits(PLAIN, joined), logits(FACTORED, moved), atol=1e-5)
    assert join_embedding(plain) is plain


def test_no_group_trains_the_teachers_table_and_rare_pieces_move_with_the_frequent():
    params = start(FACTORED)
    trained = trees.mask(params, FACTORED.groups)
    assert not trained["source"]["table"]
    assert trained["embed"] == {"table": True, "projection": True}
    slope = jax.grad(lambda p: jnp.sum(logits(FACTORED, p) ** 2))(params)["embed"]
    after = {name: params["embed"][name] - 0.1 * slope[name] for name in slope}
    rare = np.setdiff1d(np.arange(200), TOKENS)
    one = join_embedding({**params, "embed": after})["embed"]["table"]
    assert np.abs(one - join_embedding(params)["embed"]["table"])[rare].min(axis=1).max() > 0
