"""The network of several streams: one trunk, and convolutions side by side whose maps a head pools together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poolexport.method import inputs_of
from poolexport_models.compact import convolution
from poolexport_models.holes import Filler, shape_of


class StreamsCNN(nn.Module):
    """Two convolutions, then one convolution per map that the head takes, the head, and a linear classifier.

    Args:
        head: given a number of channels, the layer that turns several maps of equal size into a fixed number of
            features.
        channels: of the first convolution; the maps have twice as many.
        classes: length of the answer.

    Shape:
        (N, 1, H, W) to (N, classes), for every H and W that two poolings leave something of.

    Example:
        >>> import torch
        >>> from poolexport.nn import HierarchicalBilinearPool2d
        >>> model = StreamsCNN(lambda channels: HierarchicalBilinearPool2d(channels, joint_dim=8)).eval()
        >>> model(torch.rand(2, 1, 16, 20)).shape
        torch.Size([2, 10])

    Source:
        Two streams that meet in a pooling: Lin, RoyChowdhury, Maji, ICCV 2015, fig. 1; three maps of one trunk: Yu,
        Zhao, Zheng, Zhang, You, ECCV 2018, fig. 2.
    """

    def __init__(self, head: Filler, channels: int = 12, classes: int = 10) -> None:
        super().__init__()
        wide = 2 * channels
        self.convolution1 = convolution(1, channels)
        self.convolution2 = convolution(channels, wide)
        self.shrink = nn.MaxPool2d(2)
        self.head = head(wide)
        maps = inputs_of(type(self.head))
        self.streams = nn.ModuleList(convolution(wide, wide) for _ in range(maps))
        probe = [torch.ones(2, wide, 4, 4)] * maps
        self.classifier = nn.Linear(torch.Size(shape_of(self.head, *probe)[1:]).numel(), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(self.convolution1(x))
        x = self.shrink(self.convolution2(x))
        return self.classifier(self.head(*(stream(x) for stream in self.streams)).flatten(1))
