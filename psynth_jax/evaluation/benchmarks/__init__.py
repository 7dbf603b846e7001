"""The published benchmarks, a file each; found by name through the entry points `psynth_jax.benchmarks`."""
