"""Safetensors files: what the library writes is read, and no header is believed that lies."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax.weights import views

TENSORS = {
    "a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float16),
    "flags": np.array([True, False, True]),
}


def content(tensors=TENSORS, **options):
    return np.frombuffer(safetensors.numpy.save(tensors, **options), np.uint8)


def test_reads_what_the_library_writes():
    found, metadata = views(content(metadata={"made": "here"}))
    assert metadata == {"made": "here"}
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
    assert views(content({})) == ({}, {})


def file(header, body=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return np.frombuffer(len(text).to_bytes(8, "little") + text + body, np.uint8)


def entry(**changes):
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    ("given_file", "said"),
    [
        (np.zeros(0, np.uint8), "header of"),
        (np.full(64, 255, np.uint8), "header of"),
        (file(b"{}")[:9], "header of"),
        (file(b"[]"), "no JSON object"),
        (file(b"{"), "no JSON"),
        (file(b"[" * 100_000), "no JSON"),
        (file({"x": 3}), "x: expected a dtype"),
        (file(entry(shape=[-2])), "x: expected a dtype"),
        (file(entry(shape=[True, 2])), "x: expected a dtype"),
        (file(entry(shape=[1] * 33)), "x: expected a dtype"),
        (file(entry(data_offsets=[0])), "x: expected a dtype"),
        (file(entry(dtype="F8")), "x: dtype 'F8'"),
        (file(entry(dtype=["F32"])), "x: dtype"),
        (file(entry(data_offsets=[0, 16], shape=[4])), "x: bytes 0 to 16 of 8"),
        (file(entry(shape=[1 << 40, 1 << 40])), "x: bytes 0 to 8"),
        (file(entry(data_offsets=[8, 0])), "x: bytes 8 to 0"),
        (file(entry(data_offsets=[0, 4], shape=[1])), "belong to none"),
        (file({**entry(), "y": entry()["x"]}), "overlap"),
        (file({**entry(), "__metadata__": 3}), "no JSON object"),
    ],
)
def test_a_header_that_lies_is_refused(given_file, said):
    with pytest.raises(ValueError, match=said):
        views(given_file)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_ends_in_a_complaint_or_in_tensors(data):
    damaged = content().copy()
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found, _ = views(damaged[: data.draw(st.integers(0, len(damaged)))])
    except ValueError:
        return
    assert sum(tensor.nbytes for tensor in found.values()) <= len(damaged)
