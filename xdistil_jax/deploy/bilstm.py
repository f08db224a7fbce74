"""The BiLSTM student's forward pass in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xdistil_jax.deploy.bundle import Bundle

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def bilstm_logits(
    bundle: Bundle, tokens: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, "B"]
) -> Float[np.ndarray, "B T C"]:
    """The student's forward pass, equal to ``models.bilstm`` in fp32.

    Of a classifier all pieces but the first are without logits (0).
    """
    weights = bundle.weights
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    x = weights["embed/table"][tokens]
    directions = [(x, real, 0), (x[:, ::-1], real[:, ::-1], 1)]
    states = [_lstm(part, mask, weights, number) for part, mask, number in directions]
    both = np.concatenate([states[0], states[1][:, ::-1]], axis=-1)
    pool = bundle.sizes.get("pool", "none")
    if pool != "none":
        both = _pooled(both, real, pool)[:, None]
    projected = both @ weights["projection/kernel"] + weights["projection/bias"]
    if bundle.sizes["projection"] == "gelu":
        inner = np.sqrt(2 / np.pi).astype(np.float32) * (projected + 0.044715 * projected**3)
        projected = 0.5 * projected * (1 + np.tanh(inner))
    top = projected if bundle.sizes["head_on"] == "projection" else both
    logits = top @ weights["head/kernel"] + weights["head/bias"]
    return np.pad(logits, ((0, 0), (0, tokens.shape[1] - logits.shape[1]), (0, 0)))


def _pooled(
    states: Float[np.ndarray, "B T H2"], real: Bool[np.ndarray, "B T"], pool: str
) -> Float[np.ndarray, "B H2"]:
    """``models.bilstm.pool_states``."""
    if pool == "max":
        found = np.where(real[..., None], states, -np.inf).max(1)
        return np.where(real.any(1, keepdims=True), found, 0).astype(states.dtype)
    forth, back = np.split(states, 2, axis=-1)
    last = np.maximum(real.sum(1) - 1, 0)
    return np.concatenate([forth[np.arange(len(forth)), last], back[:, 0]], axis=-1)


def _lstm(
    x: np.ndarray, real: np.ndarray, weights: dict[str, np.ndarray], number: int
) -> np.ndarray:
    gates = x @ weights["bilstm/kernel"][number] + weights["bilstm/bias"][number]
    recurrent = weights["bilstm/recurrent"][number]
    h = c = np.zeros((len(x), len(recurrent)), np.float32)
    states = np.zeros((*x.shape[:2], len(recurrent)), np.float32)
    for step in range(x.shape[1]):
        i, f, g, o = np.split(gates[:, step] + h @ recurrent, 4, axis=-1)
        mask = real[:, step, None]
        c = np.where(mask, _sigmoid(f) * c + _sigmoid(i) * np.tanh(g), c)
        h = np.where(mask, _sigmoid(o) * np.tanh(c), h)
        states[:, step] = np.where(mask, h, 0)
    return states


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))
