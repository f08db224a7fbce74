"""The small table loses no more than it must (Eckart and Young)."""

import numpy as np
import pytest

from xdistil_jax.models.embeddings import svd_table

TABLE = np.random.default_rng(0).standard_normal((200, 24)).astype(np.float32)
TABLE *= np.linspace(3, 0.1, 24, dtype=np.float32)


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
