"""SegNet: an encoder that remembers where its maxima were, and a decoder that puts values back there."""

from __future__ import annotations

from torch import Tensor, nn

from poolexport_models.zoo.units import unit
from poolexport_models.zoo.vgg import COUNTS, FACTORS


class SegNet(nn.Module):
    """The convolutions of VGG-16, their mirror image, and unpooling by the indices of the maxima.

    Args:
        width: channels of the first convolution.
        classes: scores of every pixel.

    Shape:
        (N, 3, H, W) to (N, classes, H, W), for H and W of at least 32: each unpooling is told the size of the map that
        was pooled, so that odd lengths come back.

    Example:
        >>> import torch
        >>> SegNet(width=2, classes=5).eval()(torch.rand(1, 3, 37, 64)).shape
        torch.Size([1, 5, 37, 64])

    Source:
        Badrinarayanan, Kendall, Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image
        Segmentation", TPAMI 2017, section 3 and figures 2 and 3.
    """

    def __init__(self, width: int = 64, classes: int = 12) -> None:
        super().__init__()
        channels = [factor * width for factor in FACTORS]
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        for count, inputs, outputs in zip(COUNTS, [3, *channels], channels):
            self.encoders.append(
                nn.Sequential(unit(inputs, outputs), *(unit(outputs, outputs) for _ in range(count - 1)))
            )
            last: nn.Module = nn.Conv2d(outputs, classes, 3, padding=1) if inputs == 3 else unit(outputs, inputs)
            self.decoders.insert(0, nn.Sequential(*(unit(outputs, outputs) for _ in range(count - 1)), last))
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        remembered = []
        for encoder in self.encoders:
            x = encoder(x)
            size = x.shape[2:]
            x, indices = self.pool(x)
            remembered.append((indices, size))
        for decoder, (indices, size) in zip(self.decoders, reversed(remembered)):
            x = decoder(self.unpool(x, indices, output_size=size))
        return x
