"""PSPNet: the context of every pixel from means over the whole image, its quarters, its ninths and its 36ths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolexport_models.zoo.resnet import BLOCKS, Bottleneck, Trunk
from poolexport_models.zoo.units import unit


class PyramidPooling(nn.Module):
    """The map, and beside it the means of several grids of bins, each brought back to the size of the map.

    Args:
        channels: of the map; every level has this many divided by the number of levels.
        levels: bins along each axis of every grid.

    Shape:
        (N, channels, H, W) to (N, 2 channels, H, W).

    Example:
        >>> PyramidPooling(8).eval()(torch.rand(1, 8, 5, 7)).shape
        torch.Size([1, 16, 5, 7])

    Source:
        Zhao, Shi, Qi, Wang, Jia, CVPR 2017, section 3.2 and figure 3 (c).
    """

    def __init__(self, channels: int, levels: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        each = channels // len(levels)
        self.levels = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(n), unit(channels, each, 1)) for n in levels)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        grown = [F.interpolate(level(x), size=size, mode="bilinear", align_corners=True) for level in self.levels]
        return torch.cat([x, *grown], 1)


class PSPNet(nn.Module):
    """A dilated ResNet-50 whose maps are an eighth of the image, the pyramid, and a score for every pixel.

    Args:
        width: channels of the stem.
        classes: scores of every pixel.
        blocks: of every stage.

    Shape:
        (N, 3, H, W) to (N, classes, H, W).

    Example:
        >>> PSPNet(width=4, classes=5).eval()(torch.rand(1, 3, 50, 65)).shape
        torch.Size([1, 5, 50, 65])

    Source:
        Zhao, Shi, Qi, Wang, Jia, "Pyramid Scene Parsing Network", CVPR 2017, section 3.3 and figure 3, without the
        auxiliary loss; the stem is that of He et al., CVPR 2016.
    """

    def __init__(self, width: int = 64, classes: int = 150, blocks: Sequence[int] = BLOCKS[50]) -> None:
        super().__init__()
        self.trunk = Trunk(Bottleneck, blocks, width, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
        channels = self.trunk.channels
        self.pyramid = PyramidPooling(channels)
        self.classifier = nn.Sequential(
            unit(2 * channels, channels // 4), nn.Dropout2d(0.1), nn.Conv2d(channels // 4, classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        scores = self.classifier(self.pyramid(self.trunk(x)))
        return F.interpolate(scores, size=x.shape[2:], mode="bilinear", align_corners=True)
