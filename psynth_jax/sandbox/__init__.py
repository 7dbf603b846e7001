r"""Run Python programs that a language model wrote, where they can do no harm.

    from psynth_jax import sandbox

    outcome = sandbox.run("print(6 * 7)", sandbox.Limits(seconds=2.0))
    outcome.stdout  # "42\n"

docs/sandbox.md says what is protected, and what is not.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # the server imports its modules without those of the client
if TYPE_CHECKING:
    from typing import Any

    from psynth_jax.sandbox.api import Sandbox, run
    from psynth_jax.sandbox.limits import Limits
    from psynth_jax.sandbox.outcome import KilledFor, Outcome

__all__ = ["KilledFor", "Limits", "Outcome", "Sandbox", "run"]

_HOMES = {
    "KilledFor": "outcome",
    "Limits": "limits",
    "Outcome": "outcome",
    "Sandbox": "api",
    "run": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
