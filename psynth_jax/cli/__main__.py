"""`python -m psynth_jax.cli` is the command `psynth`."""

from psynth_jax.cli import main

if __name__ == "__main__":
    main()
