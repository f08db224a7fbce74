"""Text: readers, the embedded corpus, encoding, batches. Imports no jax."""
