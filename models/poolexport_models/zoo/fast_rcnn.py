"""Fast R-CNN: one pass of convolutions over an image, and a small map of each of its regions."""

from __future__ import annotations

from torch import Tensor, nn

from poolexport.nn import RoIMaxPool2d
from poolexport_models.zoo.vgg import convolutions, hidden_layers


class FastRCNN(nn.Module):
    """VGG-16 whose last pooling takes the maxima of 7 by 7 bins in every region.

    Args:
        width: channels of the first convolution; the hidden linear layers have 64 times as many.
        classes: kinds of things, without the background.

    Shape:
        Images (N, 3, H, W) and regions (R, 5), each the number of an image and the corners x1, y1, x2, y2 in pixels, to
        scores (R, classes + 1) and shifts (R, 4 (classes + 1)).

    Example:
        >>> import torch
        >>> model = FastRCNN(width=2, classes=20).eval()
        >>> scores, shifts = model(torch.rand(1, 3, 48, 70), torch.tensor([[0.0, 4.0, 4.0, 60.0, 40.0]]))
        >>> scores.shape, shifts.shape
        (torch.Size([1, 21]), torch.Size([1, 84]))

    Source:
        Girshick, "Fast R-CNN", ICCV 2015, sections 2, 2.1 and 2.2; network L.
    """

    def __init__(self, width: int = 64, classes: int = 20) -> None:
        super().__init__()
        self.features = convolutions(width, last_pool=False)
        self.pool = RoIMaxPool2d(7, spatial_scale=1 / 16)
        hidden = 64 * width
        self.hidden = nn.Sequential(*hidden_layers(8 * width * 7 * 7, hidden))
        self.scores = nn.Linear(hidden, classes + 1)
        self.shifts = nn.Linear(hidden, 4 * (classes + 1))

    def forward(self, images: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        x = self.hidden(self.pool(self.features(images), regions).flatten(1))
        return self.scores(x), self.shifts(x)
