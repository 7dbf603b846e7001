"""The published benchmarks, a file each; `registry` finds them by name."""
