"""What leaves the building: the bundle and its tagger. Imports no jax."""
