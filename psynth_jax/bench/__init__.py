"""Benchmarks that ship with the product: medians of several runs, compared runs in turn in one process."""
