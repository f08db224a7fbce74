"""The names of codecs; apart from ``teacher.codec``, so that a plan is refused without jax."""

import re


def kept_by(codec: str) -> int | float | None:
    """How many principal coordinates a codec keeps, or which share of the energy (a float).

    None for one that keeps the states themselves.

    Raises:
        ValueError: for an unknown name, with the choices.
    """
    if codec in ("bf16", "int8"):
        return None
    if found := re.fullmatch(r"pca-(?:([1-9]\d*)|(0\.\d*[1-9]))", codec):
        count, share = found.groups()
        return int(count) if count else float(share)
    raise ValueError(
        f"codec {codec!r} is unknown: choose from bf16, int8, pca-R (R principal coordinates, such "
        "as pca-256) and pca-E (as many as hold the share E of the energy, such as pca-0.99)"
    )
