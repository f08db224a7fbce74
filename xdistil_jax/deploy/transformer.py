"""The transformer student's forward pass in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xdistil_jax.deploy.bundle import Bundle

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Weights = Mapping[str, np.ndarray]


def transformer_logits(
    bundle: Bundle, tokens: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, "B"]
) -> Float[np.ndarray, "B T C"]:
    """Equal to ``models.transformer`` in fp32."""
    sizes, weights = bundle.sizes["encoder"], bundle.weights
    first = sizes["position_offset"]
    x = weights["embed/table"][tokens]
    x = x + weights["embed/positions"][first : first + tokens.shape[1]]
    if sizes["token_types"]:
        # As models.stack.second_text: what stands behind the first text is of the second type.
        ends = tokens == sizes.get("separator", -1)
        x = x + weights["embed/types"][np.minimum(np.cumsum(ends, axis=1) - ends, 1)]
    if not sizes["pre_norm"]:
        x = _normalize(weights, "embed/norm", x, sizes)
    if "embed/projection/kernel" in weights:
        x = _dense(weights, "embed/projection", x)
    masked = np.where(np.arange(tokens.shape[1]) < lengths[:, None], 0, -1e30).astype(np.float32)
    for number in range(sizes["layers"]):
        blocks = (("attention", _attention), ("feed_forward", _feed_forward))
        for name, block in blocks:
            path = f"layer_{number + 1}/{name}"
            norm = f"{path}/norm"
            if sizes["pre_norm"]:
                x = x + block(weights, path, _normalize(weights, norm, x, sizes), masked, sizes)
            else:
                x = _normalize(weights, norm, x + block(weights, path, x, masked, sizes), sizes)
    if sizes["pre_norm"]:
        x = _normalize(weights, "norm", x, sizes)
    return _dense(weights, "head", x)


def _dense(weights: Weights, path: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{path}/kernel"] + weights[f"{path}/bias"]


def _normalize(weights: Weights, path: str, x: np.ndarray, sizes: Mapping[str, Any]) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(sizes["norm_epsilon"]))
    return x * weights[f"{path}/scale"] + weights[f"{path}/bias"]


def _attention(
    weights: Weights, path: str, x: np.ndarray, masked: np.ndarray, sizes: Mapping[str, Any]
) -> np.ndarray:
    heads = sizes["heads"]

    def split(name: str) -> np.ndarray:
        product = _dense(weights, f"{path}/{name}", x)
        return product.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    query, key, value = split("query"), split("key"), split("value")
    scores = query @ key.swapaxes(2, 3) / np.sqrt(np.float32(query.shape[-1]))
    scores = scores + masked[:, None, None]
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares = shares / shares.sum(-1, keepdims=True)
    return _dense(weights, f"{path}/output", (shares @ value).swapaxes(1, 2).reshape(x.shape))


def _feed_forward(
    weights: Weights, path: str, x: np.ndarray, masked: np.ndarray, sizes: Mapping[str, Any]
) -> np.ndarray:
    activation = ACTIVATIONS[sizes["activation"]]
    return _dense(weights, f"{path}/down", activation(_dense(weights, f"{path}/up", x)))


def _gelu(x: np.ndarray) -> np.ndarray:
    """By erf, which NumPy lacks: Abramowitz and Stegun 7.1.26, within 1.5e-7."""
    z = np.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(factor)) * t
    return 0.5 * x * (1 + np.sign(x) * (1 - series * np.exp(-z * z)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
}
