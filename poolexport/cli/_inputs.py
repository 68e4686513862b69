"""--input and --dynamic: shapes, names and axes of the inputs, and tensors to go with them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolexport.cli import _show
from poolexport.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: What the axes of an input are called, by its rank.
AXES = {1: "N", 2: "NC", 3: "NCL", 4: "NCHW", 5: "NCDHW"}
#: Numbers in one input: 8 GB in float32.
LARGEST = 2**31


@dataclass(frozen=True)
class Input:
    """One --input: its shape, and its name where one was given."""

    shape: tuple[int, ...]
    name: str = ""


def parse(texts: Sequence[str]) -> list[Input]:
    """The inputs as they were typed.

    Raises:
        InputError: a shape is malformed, or only some of the inputs have names.
    """
    inputs = []
    for text in texts:
        name, equals, lengths = text.rpartition("=")
        for length in re.split("[xX]", lengths):
            if not re.fullmatch("[0-9]+", length) or int(length) == 0:
                raise InputError(
                    f"--input {text}: {length!r} is not a length; write whole numbers above 0 with x between them, "
                    "as in 1x3x32x32"
                )
        if equals and not name:
            raise InputError(f"--input {text}: there is no name before the =; write NAME=1x3x32x32, or the shape alone")
        inputs.append(Input(tuple(map(int, re.split("[xX]", lengths))), name))
        if math.prod(inputs[-1].shape) > LARGEST:
            raise InputError(
                f"--input {text}: an input of {math.prod(inputs[-1].shape):.3g} numbers is too large to try"
            )
    named = [given.name for given in inputs if given.name]
    if len(named) not in (0, len(inputs)):
        raise InputError(f"{len(named)} of {len(inputs)} inputs have names; name all of them or none")
    twice = [name for name in named if named.count(name) > 1]
    if twice:
        raise InputError(f"two inputs have the name {twice[0]!r}; give each its own")
    return inputs


def in_order(inputs: Sequence[Input], model: nn.Module) -> list[Input]:
    """The inputs in the order of forward's arguments; other names are names for the file, in the order given.

    Raises:
        InputError: some names are forward's and some are not, or an argument between them was left out.
    """
    arguments = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    known = [given for given in inputs if given.name in arguments]
    if not known:
        return list(inputs)
    unknown = [given.name for given in inputs if given not in known]
    if unknown:
        others = [name for name in arguments if name not in {given.name for given in known}]
        raise InputError(f"forward has no argument {unknown[0]!r}{_show.near(unknown[0], others)}")
    ordered = sorted(known, key=lambda given: arguments.index(given.name))
    for given, argument in zip(ordered, arguments):
        if given.name != argument:
            raise InputError(f"forward takes {argument!r} before {given.name!r}; give an --input for it, too")
    return ordered


def dynamic(text: str | None, inputs: Sequence[Input]) -> list[dict[int, str]] | None:
    """The dynamic axes of every input, by number.

    Raises:
        InputError: no input has an axis of that name.
    """
    if text is None:
        return None
    letters = [letter.strip().upper() for letter in text.split(",")]
    for letter in letters:
        if not any(letter and letter in AXES.get(len(given.shape), "") for given in inputs):
            axes = " or ".join(
                f"{_show.shape(x.shape)} ({','.join(AXES.get(len(x.shape), '')) or 'unnamed'})" for x in inputs
            )
            raise InputError(
                f"--dynamic {text}: there is no axis {letter!r} in an input of {axes}; name axes "
                "with commas between them"
            )
    return [
        {axis: name for axis, name in enumerate(AXES.get(len(given.shape), "")) if name in letters} for given in inputs
    ]


def draw(inputs: Sequence[Input], dtypes: Sequence[torch.dtype]) -> tuple[Tensor, ...]:
    """Normal values of these shapes, the same at every call."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(given.shape, generator=generator).to(dtype) for given, dtype in zip(inputs, dtypes))
