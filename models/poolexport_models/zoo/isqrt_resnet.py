"""iSQRT-COV network (fast MPN-COV): ResNet-50 with an approximate root of its channels' covariance."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from poolexport.nn import ISQRTCOVPool2d
from poolexport_models.zoo.resnet import BLOCKS, Bottleneck, Trunk


class ISQRTResNet(nn.Module):
    """ResNet-50 whose last stage keeps its size, a reduction of the channels, five steps towards the root.

    Args:
        width: channels of the stem; the covariance is that of four times as many.
        classes: length of the answer.
        blocks: of every stage.

    Shape:
        (N, 3, H, W) to (N, classes), for every H and W of which more than one cell is left.

    Example:
        >>> import torch
        >>> ISQRTResNet(width=4, classes=10).eval()(torch.rand(2, 3, 48, 70)).shape
        torch.Size([2, 10])

    Source:
        Li, Xie, Wang, Gao, "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square
        Root Normalization", CVPR 2018, section 3.1 and figure 1; section 4.1 for the stage that keeps its size.
    """

    def __init__(self, width: int = 64, classes: int = 1000, blocks: Sequence[int] = BLOCKS[50]) -> None:
        super().__init__()
        self.trunk = Trunk(Bottleneck, blocks, width, strides=(1, 2, 2, 1))
        reduced = 4 * width
        self.pool = ISQRTCOVPool2d(5, flatten=True, input_dim=self.trunk.channels, dimension_reduction=reduced)
        self.classifier = nn.Linear(reduced * (reduced + 1) // 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.trunk(x)))
