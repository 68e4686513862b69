"""SPP-net: five convolutions, a spatial pyramid of maxima, and three linear layers for images of any size."""

from __future__ import annotations

from torch import Tensor, nn

from poolexport.nn import SpatialPyramidPool2d
from poolexport_models.zoo.vgg import hidden_layers


class SPPNet(nn.Module):
    """The network ZF-5 with a pyramid of 6 by 6, 3 by 3, 2 by 2 and one bin.

    Args:
        width: channels of the first convolution.
        classes: length of the answer.

    Shape:
        (N, 3, H, W) to (N, classes), for H and W of at least 31.

    Example:
        >>> import torch
        >>> SPPNet(width=6, classes=10).eval()(torch.rand(2, 3, 64, 90)).shape
        torch.Size([2, 10])

    Source:
        He, Zhang, Ren, Sun, "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition", ECCV 2014,
        sections 2.2 and 3.1.2, table 1, row ZF-5.
    """

    def __init__(self, width: int = 96, classes: int = 1000) -> None:
        super().__init__()
        second, third, hidden = (channels * width // 96 for channels in (256, 384, 4096))
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=1),
            nn.ReLU(),
            nn.LocalResponseNorm(5),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(width, second, 5, stride=2),
            nn.ReLU(),
            nn.LocalResponseNorm(5),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Conv2d(second, third, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(third, third, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(third, second, 3, padding=1),
            nn.ReLU(),
        )
        levels = (6, 3, 2, 1)
        self.pyramid = SpatialPyramidPool2d(levels)
        cells = sum(n * n for n in levels)
        self.classifier = nn.Sequential(*hidden_layers(second * cells, hidden), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pyramid(self.features(x)))
