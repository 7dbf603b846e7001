"""psynth_jax: a synthesizer that reads its workers' KV caches directly."""

from psynth_jax.errors import UserError

__version__ = "0.1.0"

__all__ = ["UserError"]
