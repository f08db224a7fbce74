"""``python -m xdistil_jax``: the command line."""

from xdistil_jax.cli import main

if __name__ == "__main__":
    main()
