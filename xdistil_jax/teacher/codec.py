"""How a hidden state becomes bytes: encoded by NumPy on the host, decoded by jax inside ``jit``.

    name       what is stored of a state of width D                          bytes
    bf16       its D numbers in bfloat16                                     2 D
    int8       its D numbers in int8, with a scale for each token            D + 2
    pca-R      its R principal coordinates in int8, likewise: pca-256        R + 2
    pca-E      as many as hold the share E of the energy: pca-0.99           R + 2

The principal directions are those of a sample of the cached text (``teacher.basis``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int8, Shaped

from xdistil_jax.teacher.basis import Basis
from xdistil_jax.teacher.names import kept_by


class NotFiniteError(ValueError):
    """A state that is NaN or infinite, or too large for the codec; ``token`` says which."""

    def __init__(self, token: int) -> None:
        super().__init__(f"the state of token {token} is not finite")
        self.token = token


def refuse_non_finite(values: Shaped[np.ndarray, "N D"]) -> None:
    """Raise ``NotFiniteError`` for the first row of ``values`` that holds a NaN or an infinity."""
    finite = np.isfinite(values)
    if not finite.all():
        raise NotFiniteError(int(np.flatnonzero(~finite.all(axis=1))[0]))


@dataclass(frozen=True)
class Numbers:
    """A format of numbers: one row a token.

    ``encode`` gives an array of dtype ``stored`` (a NumPy type, so that the file is plain ``.npy``)
    and refuses what isn't finite. ``decode`` takes it as ``streamed``, as a NumPy array or inside
    ``jit``, and gives fp32; zero bytes are zeros.
    """

    stored: np.dtype
    streamed: np.dtype
    encode: Callable[[Float[np.ndarray, "N D"]], Shaped[np.ndarray, "N W"]]
    decode: Callable[[Shaped[Array | np.ndarray, "*B W"]], Float[Array | np.ndarray, "*B D"]]
    bytes_per_token: Callable[[int], int]


def encode_bf16(states: Shaped[np.ndarray, "N D"]) -> Shaped[np.ndarray, "N D"]:
    """States -> the bits of bfloat16, rounded to nearest even: relative error at most 2^-8.

    Raises:
        NotFiniteError: naming the first token with a NaN, an infinity, or a value over 3.38e38.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = states.astype(ml_dtypes.bfloat16)
    refuse_non_finite(rounded)
    return rounded.view(np.uint16)


def encode_int8(states: Shaped[np.ndarray, "N D"]) -> Int8[np.ndarray, "N D+2"]:
    """States -> int8 codes from -127 to 127, and after them the two bytes of the token's scale.

    The scale, max |x| / 127 of the token, is a bfloat16, rounded up so that no code is cut off. A
    number is off by at most max |x| / 252 (6e-39 where all of the token are under 2e-36).

    Raises:
        NotFiniteError: naming the first token with a NaN or an infinity.
    """
    with np.errstate(over="ignore"):
        values = states.astype(np.float32)
    refuse_non_finite(values)
    exact = (np.abs(values).max(axis=1) / np.float32(127)).view(np.uint32)
    # A bfloat16 is the upper half of a float32. At least the smallest normal one: XLA takes
    # others for zero.
    bits = np.maximum((exact + np.uint32(0xFFFF)) >> 16, 0x0080).astype("<u2")
    scale = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    codes = np.rint(values / scale[:, None]).astype(np.int8)
    return np.concatenate([codes, bits[:, None].view(np.int8)], axis=1)


def decode_int8(stored: Int8[Array | np.ndarray, "*B W"]) -> Float[Array | np.ndarray, "*B D"]:
    """The inverse of ``encode_int8``: code times scale, exactly."""
    scale = stored[..., -2:].view(ml_dtypes.bfloat16).astype(np.float32)
    return stored[..., :-2].astype(np.float32) * scale


def encode_logits(logits: Shaped[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    """Logits -> fp16.

    Raises:
        NotFiniteError: naming the first token with a NaN, an infinity, or a logit over 65,504.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = logits.astype(np.float16)
    refuse_non_finite(rounded)
    return rounded


def _widen(numbers: Shaped[Array | np.ndarray, "*B D"]) -> Float[Array | np.ndarray, "*B D"]:
    return numbers.astype(np.float32)


BF16 = Numbers(
    np.dtype(np.uint16), np.dtype(ml_dtypes.bfloat16), encode_bf16, _widen, lambda width: 2 * width
)
INT8 = Numbers(
    np.dtype(np.int8), np.dtype(np.int8), encode_int8, decode_int8, lambda width: width + 2
)
LOGITS = Numbers(
    np.dtype(np.float16), np.dtype(np.float16), encode_logits, _widen, lambda width: 2 * width
)
"""Whatever the codec of the states is."""


@dataclass(frozen=True)
class Codec:
    """A way to store states. ``kept`` is the number of coordinates, or the share of the energy
    that they hold (a float); None: the states are stored themselves, and there is no basis."""

    name: str
    numbers: Numbers
    kept: int | float | None = None

    def encode(
        self, states: Shaped[np.ndarray, "N D"], basis: Basis | None
    ) -> Shaped[np.ndarray, "N W"]:
        """States -> what is stored.

        Raises:
            NotFiniteError: naming the first token that isn't finite, or too large.
        """
        if basis is None:
            return self.numbers.encode(states)
        with np.errstate(invalid="ignore", over="ignore"):
            coordinates = basis.project(states.astype(np.float32))
        return self.numbers.encode(coordinates)


@cache
def find_codec(name: str) -> Codec:
    """A codec by its name.

    Raises:
        ValueError: for an unknown one, with the choices.
    """
    kept = kept_by(name)
    return Codec(name, BF16 if name == "bf16" else INT8, kept)
