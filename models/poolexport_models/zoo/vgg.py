"""VGG: five groups of 3 by 3 convolutions with a max pooling after each, and three linear layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

#: Convolutions of every group and their channels, in widths of the first, of the network with 16 layers.
COUNTS = (2, 2, 3, 3, 3)
FACTORS = (1, 2, 4, 8, 8)


def convolutions(width: int = 64, counts: Sequence[int] = COUNTS, *, last_pool: bool = True) -> nn.Sequential:
    """The part of the network before its linear layers, with or without the pooling that ends it.

    Example:
        >>> import torch
        >>> convolutions(4, last_pool=False)(torch.rand(1, 3, 48, 70)).shape
        torch.Size([1, 32, 3, 4])
    """
    layers: list[nn.Module] = []
    inputs = 3
    for count, factor in zip(counts, FACTORS):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, factor * width, 3, padding=1), nn.ReLU()]
            inputs = factor * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers if last_pool else layers[:-1])


def hidden_layers(inputs: int, hidden: int) -> list[nn.Module]:
    """The two hidden linear layers of the networks of that time, with dropout after each."""
    sizes = (inputs, hidden), (hidden, hidden)
    return [layer for size in sizes for layer in (nn.Linear(*size), nn.ReLU(), nn.Dropout())]


class VGG(nn.Module):
    """VGG-16, whose linear layers see maps of any size as 7 by 7 means.

    Args:
        width: channels of the first convolution; the hidden linear layers have 64 times as many.
        classes: length of the answer.

    Shape:
        (N, 3, H, W) to (N, classes), for H and W of at least 32.

    Example:
        >>> import torch
        >>> VGG(width=4, classes=10).eval()(torch.rand(2, 3, 40, 75)).shape
        torch.Size([2, 10])

    Source:
        Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1,
        column D. The mean of 7 by 7 bins is what makes today's versions take any size; at 224 by 224 pixels it changes
        nothing.
    """

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.features = convolutions(width)
        self.pool = nn.AdaptiveAvgPool2d(7)
        hidden = 64 * width
        self.classifier = nn.Sequential(*hidden_layers(8 * width * 7 * 7, hidden), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))
