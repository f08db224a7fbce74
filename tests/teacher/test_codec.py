"""Codecs: what is decoded is what was encoded, up to the error that each one promises."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xdistil_jax.teacher.basis import fit_basis
from xdistil_jax.teacher.codec import (
    BF16,
    INT8,
    LOGITS,
    NotFiniteError,
    encode_bf16,
    encode_int8,
    find_codec,
)

NAMES = ["bf16", "int8", "pca-3", "pca-0.9"]
STATES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 7)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
)


def roundtrip(numbers, states: np.ndarray) -> np.ndarray:
    """Encoded, decoded inside jit; on the host it comes to the same."""
    with np.errstate(divide="raise", invalid="raise"):
        stored = numbers.encode(states)
    assert stored.dtype == numbers.stored
    assert stored.shape[1] * stored.itemsize == numbers.bytes_per_token(states.shape[1])
    decoded = np.asarray(jax.jit(numbers.decode)(stored.view(numbers.streamed)))
    np.testing.assert_array_equal(numbers.decode(stored.view(numbers.streamed)), decoded)
    assert decoded.dtype == np.float32
    assert decoded.shape == states.shape
    return decoded


def basis_of(name: str, states: np.ndarray):
    kept = find_codec(name).kept
    return None if kept is None else fit_basis(states, kept)


@settings(deadline=None)
@given(STATES)
def test_bf16_is_exact_to_eight_bits(states):
    assert (np.abs(roundtrip(BF16, states) - states) <= np.abs(states) * 2.0**-8).all()


@settings(deadline=None)
@given(STATES)
def test_bf16_rounds_to_nearest_even(states):
    bits = states.view(np.uint32).astype(np.uint64)
    expected = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    np.testing.assert_array_equal(encode_bf16(states), expected.astype(np.uint16))


@settings(deadline=None)
@given(STATES)
def test_what_was_decoded_from_bf16_is_encoded_without_loss(states):
    once = roundtrip(BF16, states)
    np.testing.assert_array_equal(roundtrip(BF16, once), once)


@settings(deadline=None)
@given(STATES)
def test_int8_is_off_by_at_most_a_252nd_of_the_largest(states):
    largest = np.abs(states).max(axis=1, keepdims=True).astype(np.float64)
    error = np.abs(roundtrip(INT8, states).astype(np.float64) - states)
    assert (error <= largest / 252 + 6e-39).all()


@settings(deadline=None)
@given(STATES)
def test_int8_codes_are_symmetric_and_never_cut_off(states):
    codes = encode_int8(states)[:, :-2]
    assert codes.min() >= -127
    np.testing.assert_array_equal(codes, -encode_int8(-states)[:, :-2])
    largest = np.abs(states).max(axis=1)
    # The scale is rounded up by at most a 128th.
    assert (np.abs(codes).max(axis=1)[largest > 2e-36] >= 126).all()


def test_each_token_has_a_scale_of_its_own():
    states = np.array([[1e-20, -2e-20], [3.0, 4.0], [0.0, 0.0], [3e38, 1e38]], np.float32)
    decoded = roundtrip(INT8, states)
    np.testing.assert_allclose(decoded, states, rtol=2e-2)
    assert (decoded[2] == 0).all()


def test_the_tiniest_numbers_are_the_same_on_host_and_device():
    states = np.array([[2e-38, -3e-38], [1.2e-38, 0.0]], np.float32)
    np.testing.assert_allclose(roundtrip(INT8, states), states, atol=6e-39)


def test_zero_bytes_are_zeros():
    for numbers in (BF16, INT8, LOGITS):
        nothing = np.zeros((2, 3, 4), numbers.streamed)
        assert not np.asarray(jax.jit(numbers.decode)(nothing)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_bytes_per_token_are_those_that_are_stored(name, dtype):
    states = np.random.default_rng(0).normal(size=(40, 12)).astype(dtype)
    basis = basis_of(name, states.astype(np.float32))
    codec = find_codec(name)
    stored = codec.encode(states, basis)
    width = 12 if basis is None else basis.directions.shape[1]
    assert stored.dtype == codec.numbers.stored
    assert stored.nbytes == 40 * codec.numbers.bytes_per_token(width)
    assert width == {"bf16": 12, "int8": 12, "pca-3": 3}.get(name, width)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_states_name_their_token(name, bad):
    states = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    basis = basis_of(name, states)
    states[3, 1] = bad
    with pytest.raises(NotFiniteError) as caught:
        find_codec(name).encode(states, basis)
    assert caught.value.token == 3


@pytest.mark.parametrize(
    ("name", "bad"), [("bf16", 3.4e38), ("int8", 1e39), ("pca-3", 1e39), ("pca-3", 3.4e38)]
)
def test_too_large_states_name_their_token(name, bad):
    states = np.random.default_rng(0).normal(size=(9, 4))
    basis = basis_of(name, states.astype(np.float32))
    states[5] = bad
    with pytest.raises(NotFiniteError) as caught:
        find_codec(name).encode(states, basis)
    assert caught.value.token == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, 70_000.0])
def test_non_finite_logits_name_their_token(bad):
    logits = np.ones((4, 7), np.float32)
    logits[2, 6] = bad
    with pytest.raises(NotFiniteError) as caught:
        LOGITS.encode(logits)
    assert caught.value.token == 2


@pytest.mark.parametrize(
    "name", ["", "BF16", "int4", "pca", "pca-", "pca-0", "pca-064", "pca-1.0", "pca-.9", "pca-0.90"]
)
def test_unknown_names_are_refused_with_the_choices(name):
    with pytest.raises(ValueError, match=rf"codec '{name}' is unknown: .*bf16, int8, pca-R.*pca-E"):
        find_codec(name)


def test_names_say_what_is_kept():
    assert [find_codec(name).kept for name in NAMES] == [None, None, 3, 0.9]
    assert isinstance(find_codec("pca-256").kept, int)
