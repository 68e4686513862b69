"""Projections of the channels of every location, in float64, as matrix products."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def frames(x: Tensor) -> Tensor:
    """(N, C, *spatial) as one row of channels per location, (N M, C), in float64."""
    return x.flatten(2).transpose(1, 2).flatten(0, 1).double()


def pointwise(layer: nn.Module, rows: Tensor) -> Tensor:
    """A linear layer or a 1x1 convolution of rows of channels in float64, for which onnxruntime has no convolution."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    return F.linear(rows, weight.double().flatten(1), bias.double() if isinstance(bias, Tensor) else None)
