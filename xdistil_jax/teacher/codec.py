"""How a hidden state becomes bytes: encoded by NumPy on the host, decoded by jax inside ``jit``."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Shaped


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
class Codec:
    """One way to store states: an array a layer, one row a token.

    ``encode`` gives an array of dtype ``stored`` (a NumPy type, so that the file is plain ``.npy``)
    and refuses what isn't finite; on its way to the device it is seen as ``streamed``.
    """

    name: str
    stored: np.dtype
    streamed: np.dtype
    encode: Callable[[Float[np.ndarray, "N D"]], Shaped[np.ndarray, "N W"]]
    decode: Callable[[Shaped[Array, "*B T W"]], Float[Array, "*B T D"]]
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


def decode_bf16(states: Shaped[Array, "*B T D"]) -> Float[Array, "*B T D"]:
    """bfloat16 -> fp32, exactly."""
    return states.astype(jnp.float32)


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec(
            name="bf16",
            stored=np.dtype(np.uint16),
            streamed=np.dtype(ml_dtypes.bfloat16),
            encode=encode_bf16,
            decode=decode_bf16,
            bytes_per_token=lambda width: 2 * width,
        ),
    )
}


def encode_logits(logits: Shaped[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    """Logits -> fp16.

    Raises:
        NotFiniteError: naming the first token with a NaN, an infinity, or a logit over 65,504.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = logits.astype(np.float16)
    refuse_non_finite(rounded)
    return rounded
