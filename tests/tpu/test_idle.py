"""The idle share of a trace."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FILE = pathlib.Path(__file__).parents[2] / "tpu" / "idle.py"


@pytest.fixture(scope="module")
def idle():
    spec = importlib.util.spec_from_file_location("idle", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gaps_are_where_nothing_runs(idle):
    events = np.array([[4.0, 5.0], [1.0, 3.0], [1.5, 2.0], [4.5, 4.6], [7.0, 9.0]])
    found = idle.gaps(events, 0.0, 10.0)
    np.testing.assert_array_equal(found, [[0, 1], [3, 4], [5, 7], [9, 10]])
    np.testing.assert_array_equal(idle.gaps(events, 2.5, 4.5), [[3, 4]])
    assert not len(idle.gaps(events, 1.0, 3.0))
    np.testing.assert_array_equal(idle.gaps(events[:0], 0.0, 2.0), [[0, 2]])


def test_a_trace_is_read(idle, tmp_path, capsys):
    step = jax.jit(lambda x: jnp.tanh(x @ x))
    x = step(jnp.ones((200, 200))).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(3):
            x = step(x)
        x.block_until_ready()
    idle.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert said.startswith("/host:CPU: idle ")
    assert 0 <= float(said.split()[2]) < 100


def test_a_folder_without_a_trace_is_told(idle, tmp_path):
    with pytest.raises(SystemExit, match=r"no trace .*profile\.sh"):
        idle.main([str(tmp_path)])
