"""The compact network: two convolutions, a pooling after each, one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from poolexport_models.holes import Filler, features_of, global_mean, max_pool


class CompactCNN(nn.Module):
    """Two convolutions with a pooling after each, a head, and a linear classifier; any image size.

    Args:
        pool: given a number of channels, the layer that down-samples; asked twice.
        channels: of the first convolution; the second has twice as many.
        classes: length of the answer.
        head: given a number of channels, the layer that turns maps of any size into a fixed number of features; the
            mean of every channel by default.

    Shape:
        (N, 1, H, W) to (N, classes), for every H and W that two poolings leave something of.

    Example:
        >>> import torch
        >>> CompactCNN(lambda channels: nn.MaxPool2d(2)).eval()(torch.rand(2, 1, 16, 20)).shape
        torch.Size([2, 10])

    Source:
        The convolution, pooling, convolution, pooling order of LeNet-5 (LeCun, Bottou, Bengio, Haffner, 1998), with
        batch normalisation (Ioffe, Szegedy, 2015) and the global mean of Network in Network (Lin, Chen, Yan, 2013).
    """

    def __init__(
        self, pool: Filler = max_pool, channels: int = 16, classes: int = 10, *, head: Filler = global_mean
    ) -> None:
        super().__init__()
        wide = 2 * channels
        self.convolution1 = convolution(1, channels)
        self.pool1 = pool(channels)
        self.convolution2 = convolution(channels, wide)
        self.pool2 = pool(wide)
        self.head = head(wide)
        self.classifier = nn.Linear(features_of(self.head, wide), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.convolution1(x))
        x = self.pool2(self.convolution2(x))
        return self.classifier(self.head(x).flatten(1))


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """A 3 by 3 convolution that keeps H and W, batch normalisation, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
