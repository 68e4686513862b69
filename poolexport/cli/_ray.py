"""What ``serve`` and ``run`` have in common where they go past one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from poolexport.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])


def options(purpose: str) -> Callable[[F], F]:
    """The options that say which cluster is meant."""

    def add(command: F) -> F:
        help_ = "Head of the cluster, where it is another one; with it, --ray may be left out."
        command = click.option("--ray-address", metavar="HOST:PORT", help=help_)(command)
        help_ = f"{purpose} on the Ray cluster that this machine is a part of; where there is none, on one of its own."
        return click.option("--ray", "on_ray", is_flag=True, help=help_)(command)

    return add


def given(name: str) -> bool:
    """Whether a parameter of the command that runs was written on the command line, or in a file of options."""
    source = click.get_current_context().get_parameter_source(name)
    return source in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)


def refuse(told: Mapping[str, str], reason: str) -> None:
    """Raise where an option was given that means nothing here.

    Args:
        told: names of parameters, and what to do instead.
        reason: what makes them mean nothing.
    """
    for parameter in click.get_current_context().command.params:
        if parameter.name in told and given(parameter.name):
            raise InputError(f"{parameter.opts[0]} {reason}: {told[parameter.name]}")
