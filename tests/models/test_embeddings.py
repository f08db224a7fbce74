"""The small table loses no more than it must (Eckart and Young); a factored one is one table."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax import trees
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.embeddings import (
    join_embedding,
    reduced,
    start_embedding,
    svd_directions,
    without_first,
)
from xdistil_jax.models.functional import build

TABLE = np.random.default_rng(0).standard_normal((200, 24)).astype(np.float32)
TABLE *= np.linspace(3, 0.1, 24, dtype=np.float32)


def svd_table(table, rank, **options):
    return table @ svd_directions(table, rank, **options)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_reconstruction_error_is_the_optimum(data):
    """Eckart and Young: the root of the sum of the squared singular values left out."""
    rows, columns = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 24))
    rank = data.draw(st.integers(1, min(rows, columns)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    table = random.standard_normal((rows, columns)) * np.linspace(3, 0.1, columns)
    # A mean far from zero, as tables of encoders have: what the SVD keeps is not what PCA keeps.
    table = (table + data.draw(st.sampled_from([0.0, 2.0]))).astype(np.float32)
    small = svd_table(table, rank)
    assert small.shape == (rows, rank)
    assert small.dtype == np.float32
    error = np.linalg.norm(table - small @ svd_directions(table, rank).T)
    values = np.linalg.svd(table.astype(np.float64))[1]
    assert error == pytest.approx(
        np.sqrt((values[rank:] ** 2).sum()), rel=1e-4, abs=1e-5 * values[0]
    )


def reference_pca(table, rank):
    centred = table.astype(np.float64) - table.mean(0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :rank] * values[:rank]


def reference_ppa(table, removed):
    """Algorithm 1 of Raunak et al., row by row and direction by direction."""
    centred = table.astype(np.float64) - table.mean(0, dtype=np.float64)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:removed]
    for row in centred:
        for direction in directions:
            row -= (direction @ row) * direction
    return centred


def assert_same_up_to_signs(found, wanted, atol=2e-3):
    """A column's sign is anyone's choice."""
    signs = np.sign((found * wanted).sum(0))
    np.testing.assert_allclose(found * signs, wanted, atol=atol)


SHIFTED = TABLE + np.linspace(-1, 2, 24, dtype=np.float32)


def test_pca_is_that_of_the_centred_table():
    assert_same_up_to_signs(reduced(SHIFTED, 5, "pca"), reference_pca(SHIFTED, 5))
    assert np.abs(reduced(SHIFTED, 5, "svd").mean(0)).max() > 0.5


@pytest.mark.parametrize("removed", [1, 3])
def test_ppa_takes_out_the_first_directions_before_and_after(removed):
    np.testing.assert_allclose(
        without_first(SHIFTED, removed), reference_ppa(SHIFTED, removed), atol=1e-4
    )
    small = reference_pca(reference_ppa(SHIFTED, removed), 6)
    found = reduced(SHIFTED, 6, "ppa", removed=removed)
    assert_same_up_to_signs(found[:, removed:], reference_ppa(small, removed)[:, removed:])
    assert np.abs(found[:, :removed]).max() < 1e-3


@pytest.mark.parametrize(("width", "removed"), [(24, 1), (150, 2), (300, 3)])
def test_a_hundredth_of_the_directions_is_taken_out_by_default(width, removed):
    table = np.random.default_rng(2).standard_normal((400, width)).astype(np.float32)
    np.testing.assert_array_equal(without_first(table), without_first(table, removed))
    values = np.linalg.svd(without_first(table), compute_uv=False)
    assert (values < 1e-3).sum() == removed
    with pytest.raises(ValueError, match=f"{width} directions taken out of {width}"):
        without_first(table, width)


def test_a_full_table_stays_as_it_is():
    wide = replace(PLAIN, embed=24)
    params = build(wide).init(jax.random.key(0))
    for how in ("full", "vectors"):
        found = start_embedding(params, SHIFTED, scale=0, how=how)["embed"]["table"]
        np.testing.assert_array_equal(found, SHIFTED)


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
    how = "projected" if spec.source_width else "svd"
    return start_embedding(params, TABLE, scale=scale, how=how)


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
