"""psynth_jax: a synthesizer that reads its workers' KV caches directly."""

import logging

from psynth_jax.branches import Branches
from psynth_jax.convert.adapter_directory import Adapter, save_adapter
from psynth_jax.convert.adapters import load_adapter
from psynth_jax.convert.load import load_model
from psynth_jax.errors import UserError
from psynth_jax.model import Model
from psynth_jax.prompts import load_roles, worker_prompts
from psynth_jax.sharding import make_mesh
from psynth_jax.synthesis.pipeline import ParallelSynthesis, SynthesisResult
from psynth_jax.synthesis.programs import keep_compiled_programs
from psynth_jax.synthesis.session import Session

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "Adapter",
    "Branches",
    "Model",
    "ParallelSynthesis",
    "Session",
    "SynthesisResult",
    "UserError",
    "keep_compiled_programs",
    "load_adapter",
    "load_model",
    "load_roles",
    "make_mesh",
    "save_adapter",
    "worker_prompts",
]
