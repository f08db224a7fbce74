"""What a run was made with."""

import platform
from importlib import metadata
from typing import Any

_PACKAGES = (
    *("xdistil_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers"),
    *("transformers", "datasets", "seqeval", "safetensors", "tensorboardX", "Faker", "Babel"),
)


def versions() -> dict[str, Any]:
    """Versions of Python and of the packages, the platform and the devices of this process."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found = {"python": platform.python_version(), "platform": platform.platform(), **packages}
    try:
        import jax
    except ImportError:
        return found
    kinds = [device.device_kind for device in jax.devices()]
    devices = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    return found | {"backend": jax.default_backend(), "devices": devices}
