"""Residual networks: blocks that add to their input, and a choice of what makes maps smaller.

In the network of the paper that is the stride of convolutions. Where a pooling takes their place, the convolutions keep
the size, the pooling comes after the ReLU of the 3 by 3 convolution, and on the shortcut before its 1 by 1 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from poolexport_models.holes import Filler
from poolexport_models.zoo.units import unit


class BasicBlock(nn.Module):
    """Two 3 by 3 convolutions whose answer is added to the input.

    Args:
        inputs: channels that come in.
        channels: of both convolutions.
        stride: 2 halves the map.
        dilation: cells between the taps of the 3 by 3 convolutions.
        halve: given a number of channels, the pooling that takes the place of the stride.

    Shape:
        (N, inputs, H, W) to (N, channels, H', W'); what the stride or the pooling makes of H and W.

    Example:
        >>> import torch
        >>> BasicBlock(4, 8, stride=2, halve=lambda channels: nn.AvgPool2d(2))(torch.rand(2, 4, 6, 9)).shape
        torch.Size([2, 8, 3, 4])

    Source:
        He, Zhang, Ren, Sun, CVPR 2016, figure 5, left.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self, inputs: int, channels: int, stride: int = 1, dilation: int = 1, halve: Filler | None = None
    ) -> None:
        super().__init__()
        strided, pools = _shrinking(stride, halve, channels)
        self.residual = nn.Sequential(
            unit(inputs, channels, stride=strided, dilation=dilation),
            *pools,
            unit(channels, channels, active=False, dilation=dilation),
        )
        self.shortcut = _shortcut(inputs, channels, stride, halve)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3 by 3 convolution between two of 1 by 1, whose answer is added to the input.

    Args:
        inputs: channels that come in.
        channels: of the 3 by 3 convolution; four times as many go out.
        stride, dilation, halve: see BasicBlock.

    Shape:
        (N, inputs, H, W) to (N, 4 channels, H', W'); what the stride or the pooling makes of H and W.

    Example:
        >>> import torch
        >>> Bottleneck(4, 2, stride=2)(torch.rand(2, 4, 6, 9)).shape
        torch.Size([2, 8, 3, 5])

    Source:
        He, Zhang, Ren, Sun, CVPR 2016, figure 5, right; the stride is that of the 3 by 3 convolution, as in most code.
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self, inputs: int, channels: int, stride: int = 1, dilation: int = 1, halve: Filler | None = None
    ) -> None:
        super().__init__()
        strided, pools = _shrinking(stride, halve, channels)
        outputs = self.expansion * channels
        self.residual = nn.Sequential(
            unit(inputs, channels, 1),
            unit(channels, channels, stride=strided, dilation=dilation),
            *pools,
            unit(channels, outputs, 1, active=False),
        )
        self.shortcut = _shortcut(inputs, outputs, stride, halve)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


Block = type[BasicBlock] | type[Bottleneck]
#: Blocks of every stage, by the number of layers.
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def _shrinking(stride: int, halve: Filler | None, channels: int) -> tuple[int, list[nn.Module]]:
    """The stride of the convolution, and the poolings behind it."""
    return (stride, []) if stride == 1 or halve is None else (1, [halve(channels)])


def _shortcut(inputs: int, outputs: int, stride: int, halve: Filler | None) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    strided, pools = _shrinking(stride, halve, inputs)
    return nn.Sequential(*pools, unit(inputs, outputs, 1, active=False, stride=strided))


def stem(width: int, pool: Filler = lambda channels: nn.MaxPool2d(3, 2, 1)) -> nn.Sequential:
    """The 7 by 7 convolution with a stride of 2 and the pooling that every residual network begins with."""
    return nn.Sequential(unit(3, width, 7, stride=2), pool(width))


class Trunk(nn.Module):
    """A residual network without its head: a stem and four stages of blocks.

    Args:
        block: BasicBlock or Bottleneck.
        counts: blocks of every stage.
        width: channels of the stem and of the first stage's 3 by 3 convolutions; they double with every stage.
        start: the stem; ``stem(width)`` by default.
        halve: what takes the place of strides in the blocks, see BasicBlock.
        strides, dilations: of the first convolution and of all 3 by 3 convolutions of every stage.

    Shape:
        (N, 3, H, W) to (N, channels, H / 32, W / 32), rounded up where strides make maps smaller.

    Example:
        >>> import torch
        >>> trunk = Trunk(Bottleneck, (1, 1, 1, 1), width=4)
        >>> trunk(torch.rand(2, 3, 64, 70)).shape, trunk.channels
        (torch.Size([2, 128, 2, 3]), 128)

    Source:
        He, Zhang, Ren, Sun, CVPR 2016, table 1.
    """

    def __init__(
        self,
        block: Block,
        counts: Sequence[int],
        width: int = 64,
        *,
        start: nn.Module | None = None,
        halve: Filler | None = None,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        self.stem = start or stem(width)
        stages = []
        inputs = width
        for number, (count, stride, dilation) in enumerate(zip(counts, strides, dilations)):
            blocks: list[nn.Module] = []
            for position in range(count):
                blocks.append(block(inputs, width << number, 1 if position else stride, dilation, halve))
                inputs = (width << number) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.channels = inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))


class ResNet(nn.Module):
    """A residual network that classifies: the mean of every channel, and a linear layer.

    Args:
        trunk: what comes before the head.
        classes: length of the answer.

    Shape:
        (N, 3, H, W) to (N, classes), for every H and W that the trunk leaves something of.

    Example:
        >>> import torch
        >>> ResNet(Trunk(BasicBlock, (2, 2, 2, 2), width=4), classes=10).eval()(torch.rand(2, 3, 33, 50)).shape
        torch.Size([2, 10])

    Source:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 3.3 and table 1.
    """

    def __init__(self, trunk: Trunk, classes: int = 1000) -> None:
        super().__init__()
        self.trunk = trunk
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(trunk.channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.trunk(x)).flatten(1))


def resnet18(width: int = 64, classes: int = 1000, blocks: Sequence[int] = BLOCKS[18]) -> ResNet:
    """ResNet-18, whose maps are made smaller by strides, and once by a max pooling."""
    return ResNet(Trunk(BasicBlock, blocks, width), classes)


def resnet50(width: int = 64, classes: int = 1000, blocks: Sequence[int] = BLOCKS[50]) -> ResNet:
    """ResNet-50, whose maps are made smaller by strides, and once by a max pooling."""
    return ResNet(Trunk(Bottleneck, blocks, width), classes)
