"""Is one model better than another? A paired bootstrap over sentences, within each language."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from xdistil_jax.files import write_atomic
from xdistil_jax.report.metrics import entities


class Comparison(NamedTuple):
    """The difference of two mean F1 in points, its 95 % interval, and how often it is not > 0."""

    difference: float
    low: float
    high: float
    p: float


def count_sentences(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> Int[np.ndarray, "S 3"]:
    """Entities of each sentence: correct, predicted, gold."""
    both = zip(entities(gold), entities(predicted), strict=True)
    counts = [(len(truth & guess), len(guess), len(truth)) for truth, guess in both]
    return np.array(counts, np.int32).reshape(-1, 3)


def count_texts(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> Int[np.ndarray, "S 3"]:
    """The same for classes of whole texts, of which F1 is the accuracy."""
    rows = [(truth == guess, 1, 1) for truth, guess in zip(gold, predicted, strict=True)]
    return np.array(rows, np.int32).reshape(-1, 3)


def counts_path(folder: Path, sentences: str) -> Path:
    """Where the counts of a model that lies in ``folder`` are kept, on the sentences of this id."""
    return folder / f"counts-{sentences}.json"


def write_counts(path: Path, counts: Int[np.ndarray, "S 3"], languages: Sequence[str]) -> None:
    """Keep counts, and the language of each sentence."""
    write_atomic(path, json.dumps({"counts": counts.tolist(), "languages": list(languages)}))


def read_counts(path: Path) -> tuple[Int[np.ndarray, "S 3"], list[str]]:
    """The inverse of ``write_counts``."""
    record = json.loads(path.read_text(encoding="utf-8"))
    return np.array(record["counts"], np.int32).reshape(-1, 3), record["languages"]


def paired_bootstrap(
    ones: Sequence[Int[np.ndarray, "S 3"]],
    others: Sequence[Int[np.ndarray, "S 3"]],
    languages: Sequence[str],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two ways to train a model by what their runs, one a seed, say of equal sentences.

    The figure of a way is F1 in percent, averaged over languages and then over its runs. Each draw
    takes, with replacement, as many sentences of each language as there are, the same for all runs.

    Raises:
        ValueError: if the runs were not scored on the same sentences.
    """
    languages = np.asarray(languages)
    runs = (*ones, *others)
    if not ones or not others or {len(run) for run in runs} != {len(languages)}:
        raise ValueError(
            f"expected the counts of {len(languages)} sentences for each run of either way, found "
            f"{[len(run) for run in ones]} and {[len(run) for run in others]}"
        )
    counts = np.stack(runs, axis=1)  # [S, runs, 3]
    rng = np.random.default_rng(seed)
    drawn, whole = np.zeros((draws, len(runs))), np.zeros(len(runs))
    used = 0
    for language in np.unique(languages):
        mine = counts[languages == language]
        if not mine[..., 2].any():
            continue
        used += 1
        whole += _f1(mine.sum(axis=0))
        weights = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=draws)
        drawn += _f1((weights @ mine.reshape(len(mine), -1)).reshape(draws, -1, 3))
    sign = np.r_[np.full(len(ones), 1 / len(ones)), np.full(len(others), -1 / len(others))]
    differences = drawn @ sign / max(used, 1)
    low, high = np.percentile(differences, (2.5, 97.5)).tolist()
    difference = float(whole @ sign / max(used, 1))
    return Comparison(difference, low, high, float(np.mean(differences <= 0)))


def _f1(counts: Int[np.ndarray, "*K 3"]) -> Float[np.ndarray, "*K"]:
    correct, predicted, gold = np.moveaxis(counts, -1, 0)
    return 200 * correct / np.maximum(predicted + gold, 1)
