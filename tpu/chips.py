"""Figures of TPU chips, from Google's pages of each generation."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Of one chip: memory in bytes, peak bf16 FLOP/s, memory bandwidth in bytes/s.

    ``hbm`` is what the data sheet says; the compiler keeps a part of it for itself. ``config``
    makes one device of the two cores of a chip, where the compiler would else see two.
    """

    hbm: float
    flops: float
    bandwidth: float
    source: str
    config: str = ""


# Read 2026-11-21.
CHIPS: dict[str, Chip] = {
    "v4": Chip(32 * 2**30, 275e12, 1200e9, "https://cloud.google.com/tpu/docs/v4", "megacore"),
    "v5e": Chip(16 * 2**30, 197e12, 819e9, "https://cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, "https://cloud.google.com/tpu/docs/v5p"),
    "v6e": Chip(32 * 2**30, 918e12, 1638e9, "https://cloud.google.com/tpu/docs/v6e"),
}
