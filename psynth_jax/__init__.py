"""psynth_jax: a synthesizer that reads its workers' KV caches directly.

The names below are imported when they are first used, so that `import psynth_jax` takes no longer than `import jax`.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # for type checkers it is true; to import typing takes longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from psynth_jax.branches import Branches
    from psynth_jax.convert.adapter_directory import Adapter, save_adapter
    from psynth_jax.convert.adapters import load_adapter
    from psynth_jax.convert.load import load_model
    from psynth_jax.engine.compilation_cache import keep_compiled_programs
    from psynth_jax.errors import UserError
    from psynth_jax.model import Model
    from psynth_jax.prompts import load_roles, worker_prompts
    from psynth_jax.sharding import make_mesh
    from psynth_jax.synthesis.engine import Engine
    from psynth_jax.synthesis.gate import Gate
    from psynth_jax.synthesis.pipeline import ParallelSynthesis, SynthesisResult
    from psynth_jax.synthesis.requests import Request
    from psynth_jax.synthesis.session import Session

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Branches",
    "Engine",
    "Gate",
    "Model",
    "ParallelSynthesis",
    "Request",
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

# Where each public name lives; the imports above say the same to type checkers and editors, and a test compares them.
_HOMES = {
    "Adapter": "convert.adapter_directory",
    "Branches": "branches",
    "Engine": "synthesis.engine",
    "Gate": "synthesis.gate",
    "Model": "model",
    "ParallelSynthesis": "synthesis.pipeline",
    "Request": "synthesis.requests",
    "Session": "synthesis.session",
    "SynthesisResult": "synthesis.pipeline",
    "UserError": "errors",
    "keep_compiled_programs": "engine.compilation_cache",
    "load_adapter": "convert.adapters",
    "load_model": "convert.load",
    "load_roles": "prompts",
    "make_mesh": "sharding",
    "save_adapter": "convert.adapter_directory",
    "worker_prompts": "prompts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
