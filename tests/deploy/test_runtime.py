"""The session around a graph: what it refuses, and that it answers several threads at once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.deploy.test_onnx import batch, export, saved
from tests.deploy.toys import toy_spec
from xdistil_jax.deploy.bundle import BundleError
from xdistil_jax.deploy.runtime import Runtime


def test_a_file_that_is_no_graph_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"absent\.onnx can't be loaded by onnxruntime"):
        Runtime(tmp_path / "absent.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"model\.onnx can't be loaded by .*Export"):
        Runtime(tmp_path / "model.onnx")


def test_less_than_one_thread_is_refused(tmp_path):
    with pytest.raises(ValueError, match="threads is 0: expected at least 1"):
        Runtime(tmp_path / "model.onnx", threads=0)


def test_eight_threads_get_the_answers_of_one(tmp_path):
    runtime = export(saved(tmp_path / "s", toy_spec())[0], tmp_path / "model.onnx")
    batches = [batch(1 + n % 5, 1 + n % 12, seed=n) for n in range(64)]
    alone = [runtime.logits(*each) for each in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: runtime.logits(*each), batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
