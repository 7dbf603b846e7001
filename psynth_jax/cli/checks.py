"""Checks of options that need no model: what is wrong is said before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer

from psynth_jax.errors import InputError


def check_at_least(least: int, numbers: Mapping[str, int]) -> None:
    """Raise `InputError` naming the first option whose number is smaller."""
    for name, number in numbers.items():
        if number < least:
            raise InputError(f"{name} is {number}; it must be at least {least}")


def check_choice(name: str, value: str | None, choices: str) -> None:
    """Raise `InputError` for a value that is none of "a, b, c"; None is no value."""
    if value is not None and value not in choices.split(", "):
        raise InputError(f"{name} is {value!r}; it must be one of {choices}")


def check_dtype(dtype: str | None) -> None:
    """Raise `ConfigError` for a name that is no dtype of a model."""
    from psynth_jax.convert.rules import parameter_dtype

    parameter_dtype(dtype)


def check_mesh(mesh: str | None) -> None:
    """Raise `ConfigError` for a mesh that is not written like one."""
    if mesh is not None:
        from psynth_jax.sharding import mesh_sizes

        mesh_sizes(mesh)


def check_unicode(values: Mapping[str, object]) -> None:
    """Raise `InputError` for an argument of bytes that are not UTF-8: tokenizers and checkpoints cannot have such a name."""
    for name, value in values.items():
        for text in value if isinstance(value, list | tuple) else [value]:
            try:
                str(text).encode("utf-8")
            except UnicodeEncodeError:
                raise InputError(f"{name.replace('_', '-')} is not UTF-8 text: {text!s:.200}") from None


def was_given(context: typer.Context, name: str) -> bool:
    """Whether an option stood on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_together(context: typer.Context, one: str, others: Sequence[str], why: str) -> None:
    """Raise `InputError` naming two options that stood on the command line together, of which one would be ignored."""
    if not was_given(context, one):
        return
    for other in others:
        if was_given(context, other):
            raise InputError(f"{spelled(one)} and {spelled(other)} contradict each other: {why}")


def spelled(name: str) -> str:
    """Return an option as it is typed."""
    return "--" + name.replace("_", "-")
