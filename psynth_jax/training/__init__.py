"""Training of mapper and adapter: examples in batches by length, one jitted step over a mesh, checkpoints, metrics."""
