"""CLIP's residual network for images: three convolutions to begin with, means for strides, attention at the end."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from poolexport.nn import AttentionPool2d
from poolexport_models.zoo.resnet import BLOCKS, Bottleneck, Trunk
from poolexport_models.zoo.units import unit


class CLIPResNet(nn.Module):
    """The image encoder RN50.

    Args:
        width: channels of the stem's last convolution; the answer has 16 times as many numbers.
        size: rows and columns that the table of positions is for; 7 belongs to images of 224 by 224 pixels.
        blocks: of every stage.

    Shape:
        (N, 3, H, W) to (N, 16 width). The table of positions is interpolated for maps of other sizes than its own; the
        published network takes one size only, at which this one answers the same.

    Example:
        >>> import torch
        >>> CLIPResNet(width=4, size=2).eval()(torch.rand(2, 3, 64, 100)).shape
        torch.Size([2, 64])

    Source:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 2.4;
        the stem is that of He et al., "Bag of Tricks for Image Classification", CVPR 2019, section 4.
    """

    def __init__(self, width: int = 64, size: int = 7, blocks: Sequence[int] = BLOCKS[50]) -> None:
        super().__init__()
        half = width // 2
        start = nn.Sequential(unit(3, half, stride=2), unit(half, half), unit(half, width), nn.AvgPool2d(2))
        self.trunk = Trunk(Bottleneck, blocks, width, start=start, halve=lambda channels: nn.AvgPool2d(2))
        self.pool = AttentionPool2d(
            self.trunk.channels, num_heads=width // 2, size=size, output_dim=16 * width, positions="interpolate"
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.trunk(x))
