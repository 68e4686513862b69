"""Residual networks whose maps are made smaller by SoftPool, LIP or BlurPool, in the stem and in every stage.

Source:
    SoftPool: Stergiou, Poppe, Kalliatakis, "Refining Activation Downsampling with SoftPool", ICCV 2021, section 4.2,
        where it replaces the max pooling; the strides of the blocks are replaced here too.
    LIP: Gao, Wang, Wu, "LIP: Local Importance-based Pooling", ICCV 2019, section 4.1 and figure 4, where the two
        poolings of a block share part of their bottleneck.
    BlurPool: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from poolexport.nn import BlurPool2d, BottleneckLIP2d, MaxBlurPool2d, SimplifiedLIP2d, SoftPool2d
from poolexport_models.holes import Filler
from poolexport_models.zoo.resnet import BLOCKS, BasicBlock, Block, Bottleneck, ResNet, Trunk, stem


def softpool_resnet(width: int = 64, classes: int = 1000, blocks: Sequence[int] = BLOCKS[18]) -> ResNet:
    """ResNet-18 with a SoftPool of 2 by 2 cells for every pooling, and for every stride but the first."""
    return _pooled(BasicBlock, blocks, width, classes, lambda channels: SoftPool2d(2), lambda channels: SoftPool2d(2))


def lip_resnet(width: int = 64, classes: int = 1000, blocks: Sequence[int] = BLOCKS[50]) -> ResNet:
    """ResNet-50 that pools by importance, which a convolution finds in the stem, and a bottleneck in each block."""

    def halve(channels: int) -> nn.Module:
        return BottleneckLIP2d(channels, 2 * width)

    return _pooled(Bottleneck, blocks, width, classes, SimplifiedLIP2d, halve)


def blurpool_resnet(width: int = 64, classes: int = 1000, blocks: Sequence[int] = BLOCKS[50]) -> ResNet:
    """ResNet-50 that blurs before it leaves out cells: after maxima of 2 by 2 cells in the stem, and in the blocks."""
    return _pooled(Bottleneck, blocks, width, classes, lambda channels: MaxBlurPool2d(), BlurPool2d)


def _pooled(block: Block, blocks: Sequence[int], width: int, classes: int, start: Filler, halve: Filler) -> ResNet:
    return ResNet(Trunk(block, blocks, width, start=stem(width, start), halve=halve), classes)
