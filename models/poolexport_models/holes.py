"""What goes into a network's hole, and which hole a layer fits.

A network has two places for a pooling layer: ``pool``, between its convolutions, and ``head``, before its classifier.
A layer whose answer grows with its input goes between convolutions; one whose answer has a fixed size makes a head. Two
further networks have one place each: ``streams``, a head that takes several maps, and ``regions``, the pooling of a
detector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

#: Given the number of channels at the hole, the layer that fills it.
Filler: TypeAlias = Callable[[int], nn.Module]
Hole: TypeAlias = Literal["pool", "head", "streams", "regions"]


class GlobalMean(nn.Module):
    """The mean of every channel: the head of a network whose hole is between its convolutions.

    Shape:
        (N, C, H, W) to (N, C).

    Example:
        >>> GlobalMean()(torch.ones(2, 3, 5, 4)).shape
        torch.Size([2, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def max_pool(channels: int) -> nn.Module:
    """The down-sampling of a network whose hole is its head."""
    return nn.MaxPool2d(2)


def global_mean(channels: int) -> nn.Module:
    """The head of a network whose hole is between its convolutions."""
    return GlobalMean()


def answer(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what a layer answers to an input of a shape; neither the layer nor a random state is changed.

    The layer is tried as in training, because some layers have no inference rule before they were trained.

    Example:
        >>> answer(nn.MaxPool2d(2), (1, 3, 8, 6))
        (1, 3, 4, 3)
    """
    with torch.random.fork_rng(devices=()):
        return shape_of(layer, torch.rand(shape))


def shape_of(layer: nn.Module, *inputs: Tensor) -> tuple[int, ...]:
    """Shape of what a layer answers to some inputs; neither the layer nor a random state is changed.

    Example:
        >>> shape_of(nn.Bilinear(2, 3, 4), torch.rand(1, 2), torch.rand(1, 3))
        (1, 4)
    """
    with torch.random.fork_rng(devices=()), torch.no_grad():
        return tuple(copy.deepcopy(layer).train()(*inputs).shape)


def hole_of(layer: nn.Module, channels: int) -> Hole:
    """The hole that a layer fits.

    Example:
        >>> hole_of(nn.MaxPool2d(2), 3), hole_of(nn.AdaptiveAvgPool2d(1), 3)
        ('pool', 'head')
    """
    small, large = (2, channels, 16, 16), (2, channels, 24, 20)
    return "head" if answer(layer, small) == answer(layer, large) else "pool"


def features_of(head: nn.Module, channels: int) -> int:
    """Numbers that a head answers for one image.

    Example:
        >>> features_of(nn.AdaptiveAvgPool2d(2), 3)
        12
    """
    shape = answer(head, (2, channels, 4, 4))
    return torch.Size(shape[1:]).numel()
