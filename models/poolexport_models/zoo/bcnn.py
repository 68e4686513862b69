"""Bilinear CNN: how every two channels of a map go together, whatever the place."""

from __future__ import annotations

from torch import Tensor, nn

from poolexport.nn import BilinearPool2d
from poolexport_models.zoo.vgg import convolutions


class BilinearCNN(nn.Module):
    """B-CNN [D, D] with shared weights: VGG-16 without its last pooling, the bilinear pooling, a linear layer.

    Args:
        width: channels of the first convolution.
        classes: length of the answer.

    Shape:
        (N, 3, H, W) to (N, classes), for H and W of at least 16.

    Example:
        >>> import torch
        >>> BilinearCNN(width=2, classes=10).eval()(torch.rand(2, 3, 40, 50)).shape
        torch.Size([2, 10])

    Source:
        Lin, RoyChowdhury, Maji, "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015, section 3.
    """

    def __init__(self, width: int = 64, classes: int = 200) -> None:
        super().__init__()
        self.features = convolutions(width, last_pool=False)
        self.pool = BilinearPool2d()
        self.classifier = nn.Linear((8 * width) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))
