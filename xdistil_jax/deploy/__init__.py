"""What leaves the building: the bundle and its tagger. Imports no jax."""

from xdistil_jax import lazy

_PUBLIC = {"Classifier": "classifier", "Entity": "tagger", "Tagger": "tagger"}

__all__ = sorted(_PUBLIC)
__getattr__ = lazy.names(__name__, _PUBLIC)
