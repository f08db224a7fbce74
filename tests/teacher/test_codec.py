"""Codecs: what is decoded is what was encoded, to the last bit that bf16 has."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xdistil_jax.teacher.codec import CODECS, NotFiniteError, encode_logits

BF16 = CODECS["bf16"]
STATES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 7)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
)


def roundtrip(states: np.ndarray) -> np.ndarray:
    stored = BF16.encode(states)
    assert stored.dtype == BF16.stored == np.uint16
    return np.asarray(jax.jit(BF16.decode)(stored.view(BF16.streamed)))


@given(STATES)
def test_roundtrip_is_exact_to_eight_bits(states):
    decoded = roundtrip(states)
    assert decoded.dtype == np.float32
    assert (np.abs(decoded - states) <= np.abs(states) * 2.0**-8).all()


@given(STATES)
def test_rounds_to_nearest_even(states):
    bits = states.view(np.uint32).astype(np.uint64)
    expected = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    np.testing.assert_array_equal(BF16.encode(states), expected.astype(np.uint16))


@given(STATES)
def test_what_was_decoded_is_encoded_without_loss(states):
    once = roundtrip(states)
    np.testing.assert_array_equal(roundtrip(once), once)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
def test_non_finite_states_name_their_token(bad):
    states = np.ones((5, 3), np.float32)
    states[3, 1] = bad
    with pytest.raises(NotFiniteError) as caught:
        BF16.encode(states)
    assert caught.value.token == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, 70_000.0])
def test_non_finite_logits_name_their_token(bad):
    logits = np.ones((4, 7), np.float32)
    logits[2, 6] = bad
    with pytest.raises(NotFiniteError) as caught:
        encode_logits(logits)
    assert caught.value.token == 2


def test_bytes_per_token_is_what_is_stored():
    assert BF16.bytes_per_token(12) == BF16.encode(np.ones((1, 12), np.float32)).nbytes
