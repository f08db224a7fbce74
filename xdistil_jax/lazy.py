"""Names that are imported when they are first used (PEP 562), so that a package stays light."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

TRAIN = 'pip install "xdistil_jax[train]"'


def names(package: str, public: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__``: name -> the module below ``package`` that has it.

    Whoever uses a part that is not installed is told the pip command.
    """

    def load(name: str) -> Any:
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(f"{package}.{public[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("xdistil_jax"):
                raise
            raise ImportError(
                f"{package}.{name} needs {error.name}, which is not installed: {TRAIN}"
            ) from error

    return load
