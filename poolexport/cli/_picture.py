"""--size, --scale, --mean and --std: how the pixels of image files become numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from poolexport.errors import InputError

if TYPE_CHECKING:
    from poolexport.offline import Picture

F = TypeVar("F", bound=Callable[..., Any])


def options(command: F) -> F:
    """Give a command the options; it passes them to ``picture``."""
    for option in (
        click.option("--std", default="1", show_default=True, metavar="NUMBERS", help="Divided by: one, or R,G,B."),
        click.option("--mean", default="0", show_default=True, metavar="NUMBERS", help="Taken off: one, or R,G,B."),
        click.option("--scale", default=1 / 255, show_default="1/255", help="Of a pixel, which is 0 to 255 before."),
        click.option("--size", metavar="HxW", help="Resize images."),
    ):
        command = option(command)
    return command


def picture(size: str | None, scale: float, mean: str, std: str) -> Picture:
    """What the options say.

    Raises:
        InputError: one of them says nothing that can be done.
    """
    from poolexport import offline

    found = offline.Picture(_size(size), scale, _numbers("--mean", mean), _numbers("--std", std))
    if 0 in found.std:
        raise InputError("--std divides, so it cannot be 0")
    return found


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise InputError(f"--size {text}: write height and width with an x between them, as in 224x224")
    return int(height), int(width)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text}: write one number, or one for every channel with commas") from None
