"""Stricter than production: 8 virtual devices, no silent rank promotion."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pathlib
import resource
import subprocess

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


@pytest.fixture
def small_disk(tmp_path):
    """(a folder with room for 1 MiB, a function that makes room there)."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if not subprocess.run([*mount, "size=1m", "small", folder], capture_output=True).returncode:
        room = [*mount, "remount,size=64m", "small", folder]
        yield folder, lambda: subprocess.run(room, check=True)
        subprocess.run(["umount", "--lazy", folder], check=True)
        return
    # Only root may mount: there the limit is on each file.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Unload what a file has compiled: thousands of programs in one process would use up the
    memory maps that Linux gives it (vm.max_map_count), and XLA then crashes."""
    yield
    jax.clear_caches()
