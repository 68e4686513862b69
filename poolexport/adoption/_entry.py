"""What a family says about a foreign layer: which layer of ours it is, and in which meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Lengths of a map that are long enough for whatever looks at whole planes.
PLANE = (9, 11, 10)
Shape = tuple[int, ...]


class Unlike(Exception):
    """The foreign layer has the name, but is no layer of ours; the message says why."""


@dataclass(frozen=True)
class Foreign:
    """A layer of another package, found in a model.

    Args:
        module: the layer.
        key: what a choice for it may be named by: its path, or its class.
        choice: what the user chose for it, or None.
        dtype: floating type of the model's parameters.
    """

    module: nn.Module
    key: str = ""
    choice: str | None = None
    dtype: torch.dtype = torch.float32

    def chosen(self, name: str) -> str:
        """The argument that makes this choice."""
        return f"choices={{{self.key!r}: {name!r}}}"

    def get(self, name: str, default: Any = ...) -> Any:
        """An attribute of the layer, by its dotted name.

        Raises:
            Unlike: there is none, and no default.
        """
        value: Any = self.module
        for part in name.split("."):
            value = getattr(value, part, ...)
            if value is ...:
                break
        if value is ... and default is ...:
            raise Unlike(f"it has no attribute {name!r}, so it is another layer of that name")
        return default if value is ... else value


@dataclass(frozen=True)
class Ours:
    """A layer of ours that a foreign one may be.

    Args:
        layer: holds the foreign layer's weights.
        meaning: what it computes, in words.
        shapes: of the first input, to compare the two on.
        notes: what differs beyond the numbers, a sentence each.
        name: what a choice calls it where several are possible.
        companions: from the first input to the further ones.
        call: the method to call, where it is not the layer itself.
        training: compare in training mode, where the foreign layer draws in eval mode too.
        dtype: type to compare in.
        if_different: why a foreign layer that answers something else here may be this one nevertheless; empty where it
            may not.
        unit_vectors: both answer vectors of length 1, and where a cell of ours is exactly 0, the foreign one may have a
            rounding under a root: such cells are left out of the comparison.
    """

    layer: nn.Module
    meaning: str
    shapes: tuple[Shape, ...]
    notes: tuple[str, ...] = ()
    name: str = ""
    companions: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    call: str = "__call__"
    training: bool = False
    dtype: torch.dtype = torch.float64
    if_different: str = ""
    unit_vectors: bool = False


@dataclass(frozen=True)
class Entry:
    """A foreign layer in the table.

    Args:
        name: of its class.
        convert: to the layers of ours that it may be, the likeliest first.
        ours: classes of ours that ``convert`` makes; without one of them in ``poolexport.nn`` there is no entry.
        root: package of the class, where the name alone says too little.
    """

    name: str
    convert: Callable[[Foreign], Sequence[Ours]]
    ours: tuple[str, ...]
    root: str = ""

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is of this class, by name."""
        kind = type(module)
        return kind.__name__ == self.name and f"{kind.__module__}.".startswith(f"{self.root}." if self.root else "")


def around(kernel: Sequence[int], stride: Sequence[int], channels: int = 3) -> tuple[Shape, ...]:
    """Two shapes that hold a few windows, the second one cell longer per axis."""
    lengths = [k + (2 + axis) * s + 1 for axis, (k, s) in enumerate(zip(kernel, stride))]
    return (2, channels, *lengths), (1, channels, *(n + 1 for n in lengths))


def planes(rank: int, channels: int = 3) -> tuple[Shape, ...]:
    """Shapes for what pools whole planes."""
    return (2, channels, *PLANE[:rank]), (1, channels, *(n + 3 for n in PLANE[:rank]))


def carry(layer: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """The layer with these parameters and buffers, on their device and in their type.

    A parameter of the right shape is taken over as the object it is, so that one that several modules share is still
    shared; any other is copied.
    """
    named = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    for name, tensor in tensors.items():
        owner_path, _, leaf = name.rpartition(".")
        owner = layer.get_submodule(owner_path)
        mine = named[name]
        if tensor.numel() != mine.numel():
            raise Unlike(f"{name} has shape {tuple(mine.shape)} in our layer, but {tuple(tensor.shape)} was found")
        if isinstance(mine, nn.Parameter):
            same = isinstance(tensor, nn.Parameter) and tensor.shape == mine.shape
            copied = nn.Parameter(tensor.detach().clone().reshape(mine.shape), requires_grad=tensor.requires_grad)
            owner._parameters[leaf] = tensor if same else copied  # type: ignore[assignment]
        else:
            owner._buffers[leaf] = tensor.detach().clone().reshape(mine.shape)
    real = next((t for t in tensors.values() if t.is_floating_point()), None)
    return layer if real is None else layer.to(real.device, real.dtype)
