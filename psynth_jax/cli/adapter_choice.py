"""Which adapter a command reads branches with: the one that is named, the shipped one that fits, or none.

--adapter DIR or owner/name     that one; "./none" is a directory
--adapter none                  none: the base model reads the branches
(nothing)                       the one that is shipped with the package for this model, if there is one
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from psynth_jax.cli.setting import activity, console

if TYPE_CHECKING:
    from psynth_jax.model import Model

NONE = "none"
HELP = "for what reads branches: directory or hub id, or none; default: the one shipped for the model"


def check_adapter(adapter: str | None) -> None:
    """Find an adapter that is named, before a model is loaded.

    Raises `InputError` or `AdapterError` when it is not there, or is not an adapter.
    """
    if adapter is None or adapter == NONE:
        return
    from psynth_jax.convert.adapters import find_adapter, trained_from

    with activity(f"looking for the adapter {adapter}"):
        find_adapter(adapter)
        trained_from(adapter)


def choose_adapter(adapter: str | None, model: Model) -> str | Path | None:
    """Return the adapter to load; None: none."""
    if adapter == NONE:
        return None
    if adapter is not None:
        return adapter
    from psynth_jax.convert.adapters import shipped_adapter

    return shipped_adapter(model)


def say_adapter(asked: str | None, chosen: str | Path | None, model: Model) -> None:
    """Say on the terminal which adapter is used."""
    from psynth_jax.convert.adapters import no_shipped_adapter

    if chosen is None:
        missing = no_shipped_adapter(model) or f"no adapter is shipped for {model.name}"
        why = "as asked" if asked == NONE else f"{missing}; --adapter names one"
        line = f"adapter: none ({why})"
    else:
        line = f"adapter: {Path(chosen).name} (shipped)" if asked is None else f"adapter: {chosen}"
    console.print(Text(line, style="dim"), soft_wrap=True)
