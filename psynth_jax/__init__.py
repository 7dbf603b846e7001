"""psynth_jax: a synthesizer that reads its workers' KV caches directly."""

__version__ = "0.1.0"
