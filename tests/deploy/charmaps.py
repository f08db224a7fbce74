"""SentencePiece's maps of characters, made by hand: the real ones lie on the hub only."""

import struct

import numpy as np

_LEAF, _WIDE = 1 << 8, 1 << 9


def charmap(entries):
    """The bytes of ``normalizers.Precompiled``: {characters: what stands for them}.

    A double array: a node's children lie at its base XOR their byte, the value of an entry at the
    base of the node at which it ends.
    """
    values, starts = b"", {}
    for key, value in sorted(entries.items(), key=lambda each: each[0].encode()):
        starts[key.encode()] = len(values)
        values += value.encode() + b"\0"
    units = np.zeros(1 << 20, np.uint32)
    taken = np.zeros(len(units), np.bool_)
    taken[0] = True
    _place(units, taken, 0, b"", starts)
    size = (int(np.flatnonzero(taken)[-1]) // 256 + 1) * 256
    return struct.pack("<I", 4 * size) + units[:size].astype("<u4").tobytes() + values


def _place(units, taken, node, prefix, starts):
    """Write the children of the node at ``prefix``."""
    below = sorted({key[len(prefix)] for key in starts if key.startswith(prefix) and key != prefix})
    slots = np.array([*([0] if prefix in starts else []), *below])
    # Bases that an offset of 21 bits can express in either of its two forms.
    base = next(
        each for each in range(256, len(units), 256) if not taken[each ^ slots].any()
        and not taken[each : each + 256].all() and (node ^ each) < 1 << 21
    )  # fmt: skip
    offset = node ^ base
    units[node] |= offset << 10
    taken[base ^ slots] = True
    if prefix in starts:
        units[node] |= _LEAF
        units[base] = starts[prefix] | 1 << 31
    for byte in below:
        units[base ^ byte] = byte
    for byte in below:
        _place(units, taken, base ^ byte, prefix + bytes([byte]), starts)
