"""The detector: one pass of convolutions over an image, a region pooling, and a small network for every region."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poolexport_models.compact import convolution
from poolexport_models.holes import Filler, shape_of

#: How many pixels of an image become one cell of the map that regions are pooled from.
STRIDE = 2


class RegionCNN(nn.Module):
    """What stands in every region of an image, and where exactly: two convolutions, a region pooling, two layers.

    Args:
        pool: given a number of channels, the layer that turns a map (N, C, H, W) and regions (R, 5) into one small map
            per region; its scale must be 1 / 2.
        channels: of the first convolution; the map that regions are pooled from has 36, which every position-sensitive
            pooling into 1, 2, 3 or 6 rows and columns can divide.
        hidden: width of the network that looks at a region.
        classes: kinds of things; the last score is that of the background.

    Shape:
        Images (N, 1, H, W) and regions (R, 5), each the number of an image and the corners x1, y1, x2, y2 in pixels, to
        scores (R, classes + 1) and shifts (R, 4), which ``poolexport_models.scenes.boxes`` turns into boxes.

    Example:
        >>> import torch
        >>> from poolexport.nn import RoIMaxPool2d
        >>> model = RegionCNN(lambda channels: RoIMaxPool2d(3, spatial_scale=0.5)).eval()
        >>> scores, shifts = model(torch.rand(2, 1, 48, 64), torch.tensor([[1.0, 8.0, 8.0, 30.0, 28.0]]))
        >>> scores.shape, shifts.shape
        (torch.Size([1, 11]), torch.Size([1, 4]))

    Source:
        Girshick, "Fast R-CNN", ICCV 2015, with one box for all classes, as in R-FCN (Dai, Li, He, Sun, 2016).
    """

    def __init__(self, pool: Filler, channels: int = 12, hidden: int = 32, classes: int = 10) -> None:
        super().__init__()
        wide = 36
        self.convolution1 = convolution(1, channels)
        self.shrink = nn.MaxPool2d(STRIDE)
        self.convolution2 = convolution(channels, wide)
        self.pool = pool(wide)
        probe = torch.ones(1, wide, 16, 16), torch.tensor([[0.0, 2.0, 2.0, 20.0, 20.0]])
        self.hidden = nn.Linear(torch.Size(shape_of(self.pool, *probe)).numel(), hidden)
        self.scores = nn.Linear(hidden, classes + 1)
        self.shifts = nn.Linear(hidden, 4)

    def forward(self, images: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        x = self.convolution2(self.shrink(self.convolution1(images)))
        x = self.hidden(self.pool(x, regions).flatten(1)).relu()
        return self.scores(x), self.shifts(x)
