"""`--template NAME=VALUE`, of every command that renders a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from psynth_jax.errors import InputError, shown
from psynth_jax.template_variables import checked_variables

TemplateOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="variable of the chat template, as in enable_thinking=false; may be repeated"),
]


def template_variables(pairs: Sequence[str] | None) -> dict[str, Any] | None:
    """Return the variables that were given, values read as YAML; None when there are none.

    Raises `InputError` naming what is no NAME=VALUE, or given twice.
    """
    if not pairs:
        return None
    from psynth_jax.training.plain_values import BAD_YAML, parse_value

    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--template {shown(pair)}: write NAME=VALUE, as in enable_thinking=false")
        if name in found:
            raise InputError(f"--template: {name} is given twice")
        try:
            found[name] = parse_value(text)
        except BAD_YAML:
            raise InputError(f"--template {name}: the value {shown(text)} is not valid YAML") from None
    return checked_variables(found, "--template")
