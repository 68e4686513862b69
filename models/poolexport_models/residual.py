"""The residual network: a stem and two residual blocks, with the pooling as the only down-sampling."""

from __future__ import annotations

from torch import Tensor, nn

from poolexport_models.compact import convolution
from poolexport_models.holes import Filler, features_of, global_mean, max_pool


class ResidualCNN(nn.Module):
    """A stem and two residual blocks, each after a pooling, a head, and a linear classifier; any image size.

    No convolution has a stride: every loss of resolution is the pooling's.

    Args:
        pool: given a number of channels, the layer that down-samples; asked twice.
        channels: of the stem and the first block; the second block has twice as many.
        classes: length of the answer.
        head: given a number of channels, the layer that turns maps of any size into a fixed number of features; the
            mean of every channel by default.

    Shape:
        (N, 1, H, W) to (N, classes), for every H and W that two poolings leave something of.

    Example:
        >>> import torch
        >>> ResidualCNN(lambda channels: nn.AvgPool2d(2)).eval()(torch.rand(2, 1, 16, 20)).shape
        torch.Size([2, 10])

    Source:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016: the block of figure 2 with the
        projection of equation 2.
    """

    def __init__(
        self, pool: Filler = max_pool, channels: int = 12, classes: int = 10, *, head: Filler = global_mean
    ) -> None:
        super().__init__()
        wide = 2 * channels
        self.stem = convolution(1, channels)
        self.pool1 = pool(channels)
        self.block1 = ResidualBlock(channels, channels)
        self.pool2 = pool(channels)
        self.block2 = ResidualBlock(channels, wide)
        self.head = head(wide)
        self.classifier = nn.Linear(features_of(self.head, wide), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.pool1(self.stem(x)))
        x = self.block2(self.pool2(x))
        return self.classifier(self.head(x).flatten(1))


class ResidualBlock(nn.Module):
    """Two convolutions whose answer is added to the input.

    Args:
        inputs: channels that come in.
        outputs: channels that go out; where they differ, a 1 by 1 convolution adapts the input to them.

    Shape:
        (N, inputs, H, W) to (N, outputs, H, W).

    Example:
        >>> import torch
        >>> ResidualBlock(4, 8)(torch.rand(2, 4, 5, 7)).shape
        torch.Size([2, 8, 5, 7])

    Source:
        He, Zhang, Ren, Sun, CVPR 2016, figure 2 and equation 2.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            convolution(inputs, outputs),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual(x) + self.shortcut(x)).relu()
