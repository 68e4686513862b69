"""Image retrieval: generalized means of all channels, as a vector of length 1 that tells how alike two images are."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from poolexport.nn import GeMPool2d
from poolexport_models.zoo.resnet import BLOCKS, Bottleneck, Trunk


class GeMRetrieval(nn.Module):
    """ResNet-50, a generalized mean with a learned order, and a whitening between two norms.

    Args:
        width: channels of the stem; the answer has 32 times as many numbers.
        blocks: of every stage.

    Shape:
        (N, 3, H, W) to (N, 32 width), every row of length 1.

    Example:
        >>> import torch
        >>> GeMRetrieval(width=4).eval()(torch.rand(2, 3, 48, 70)).norm(dim=1).detach().round(decimals=4)
        tensor([1., 1.])

    Source:
        Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018, sections 3.1,
        3.2 and 3.4; its networks are AlexNet, VGG and ResNet-101.
    """

    def __init__(self, width: int = 64, blocks: Sequence[int] = BLOCKS[50]) -> None:
        super().__init__()
        self.trunk = Trunk(Bottleneck, blocks, width)
        channels = self.trunk.channels
        self.pool = GeMPool2d(power=3.0, keepdim=False)
        self.whiten = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.pool(self.trunk(x)), dim=1)
        return F.normalize(self.whiten(x), dim=1)
