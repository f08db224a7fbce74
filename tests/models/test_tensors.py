"""Files of tensors: the same content is the same bytes, and any reader reads them."""

import numpy as np
import pytest
from safetensors import safe_open

from xdistil_jax.models.tensors import read_tensors, write_tensors


@pytest.mark.parametrize("name", ["a", "größe", "a" * 7])
def test_equal_tensors_are_equal_bytes_for_any_reader(tmp_path, name):
    tensors = {name: np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.int8)}
    paths = [tmp_path / f"{number}.safetensors" for number in range(16)]
    for path in paths:
        write_tensors(path, tensors)
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(paths[0], framework="np") as theirs:
        assert theirs.metadata()["format"] == "pt"
        for each, leaf in tensors.items():
            np.testing.assert_array_equal(theirs.get_tensor(each), leaf)
            np.testing.assert_array_equal(read_tensors(paths[0])[each], leaf)
