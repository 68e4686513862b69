"""Inception v3: branches side by side, one of which takes an average that counts its padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolexport_models.zoo.units import unit


class Branches(nn.Module):
    """What several branches answer to one map, side by side.

    Args:
        branches: each from (N, C, H, W) to maps of one size.
        pooled: a branch that is given the average of every 3 by 3 cells, with a border of zeros that is counted.

    Example:
        >>> Branches(unit(2, 3), pooled=unit(2, 4, 1))(torch.rand(1, 2, 5, 6)).shape
        torch.Size([1, 7, 5, 6])

    Source:
        Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016, figures 5 to 7 and 10.
    """

    def __init__(self, *branches: nn.Module, pooled: nn.Module | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        answers = [branch(x) for branch in self.branches]
        if self.pooled is not None:
            answers.append(self.pooled(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)))
        return torch.cat(answers, 1)


class Inception(nn.Module):
    """Inception v3 without its auxiliary classifier.

    Args:
        width: channels of the first convolution; those of all others grow with it.
        classes: length of the answer.
        blocks: on maps of 35, 17 and 8 rows, where the image has 299; at most 3, 4, and any number.

    Shape:
        (N, 3, H, W) to (N, classes), for H and W of at least 75.

    Example:
        >>> Inception(width=2, classes=10).eval()(torch.rand(1, 3, 75, 90)).shape
        torch.Size([1, 10])

    Source:
        Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision", CVPR
        2016, section 6 and table 1. Numbers of channels are those of the published weights, which the paper leaves out.
    """

    def __init__(self, width: int = 32, classes: int = 1000, blocks: tuple[int, int, int] = (3, 4, 2)) -> None:
        super().__init__()

        def c(channels: int) -> int:
            return max(1, channels * width // 32)

        self.stem = nn.Sequential(
            unit(3, c(32), stride=2, padding=0),
            unit(c(32), c(32), padding=0),
            unit(c(32), c(64)),
            nn.MaxPool2d(3, 2),
            unit(c(64), c(80), 1),
            unit(c(80), c(192), padding=0),
            nn.MaxPool2d(3, 2),
        )

        def of_35(inputs: int, pooled: int) -> nn.Module:
            return Branches(
                unit(inputs, c(64), 1),
                nn.Sequential(unit(inputs, c(48), 1), unit(c(48), c(64), 5)),
                nn.Sequential(unit(inputs, c(64), 1), unit(c(64), c(96)), unit(c(96), c(96))),
                pooled=unit(inputs, c(pooled), 1),
            )

        def of_17(inputs: int, inside: int) -> nn.Module:
            flat, tall, k = (1, 7), (7, 1), c(inside)
            return Branches(
                unit(inputs, c(192), 1),
                nn.Sequential(unit(inputs, k, 1), unit(k, k, flat), unit(k, c(192), tall)),
                nn.Sequential(
                    unit(inputs, k, 1), unit(k, k, tall), unit(k, k, flat), unit(k, k, tall), unit(k, c(192), flat)
                ),
                pooled=unit(inputs, c(192), 1),
            )

        def of_8(inputs: int) -> nn.Module:
            def split(channels: int) -> nn.Module:
                return Branches(unit(channels, c(384), (1, 3)), unit(channels, c(384), (3, 1)))

            return Branches(
                unit(inputs, c(320), 1),
                nn.Sequential(unit(inputs, c(384), 1), split(c(384))),
                nn.Sequential(unit(inputs, c(448), 1), unit(c(448), c(384)), split(c(384))),
                pooled=unit(inputs, c(192), 1),
            )

        layers: list[nn.Module] = []
        channels = c(192)
        for pooled in (32, 64, 64)[: blocks[0]]:
            layers.append(of_35(channels, pooled))
            channels = 2 * c(64) + c(96) + c(pooled)
        layers.append(
            Branches(
                unit(channels, c(384), stride=2, padding=0),
                nn.Sequential(unit(channels, c(64), 1), unit(c(64), c(96)), unit(c(96), c(96), stride=2, padding=0)),
                nn.MaxPool2d(3, 2),
            )
        )
        channels += c(384) + c(96)
        for inside in (128, 160, 160, 192)[: blocks[1]]:
            layers.append(of_17(channels, inside))
            channels = 4 * c(192)
        layers.append(
            Branches(
                nn.Sequential(unit(channels, c(192), 1), unit(c(192), c(320), stride=2, padding=0)),
                nn.Sequential(
                    unit(channels, c(192), 1),
                    unit(c(192), c(192), (1, 7)),
                    unit(c(192), c(192), (7, 1)),
                    unit(c(192), c(192), stride=2, padding=0),
                ),
                nn.MaxPool2d(3, 2),
            )
        )
        channels += c(320) + c(192)
        for _ in range(blocks[2]):
            layers.append(of_8(channels))
            channels = c(320) + 4 * c(384) + c(192)
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout()
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.stem(x)))
        return self.classifier(self.dropout(x).flatten(1))
