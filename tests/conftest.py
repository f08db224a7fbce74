"""Stricter than production: 8 virtual devices, no silent rank promotion."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pathlib

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = pathlib.Path(__file__).parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real data beside the checkout; tests that read it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED.resolve()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Unload what a file has compiled: thousands of programs in one process would use up the
    memory maps that Linux gives it (vm.max_map_count), and XLA then crashes."""
    yield
    jax.clear_caches()
