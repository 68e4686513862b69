"""What most of the networks are made of, and how their weights are drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def unit(
    inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, *, active: bool = True, **options: Any
) -> nn.Sequential:
    """A convolution without bias, batch normalisation, and ReLU where it is ``active``.

    H and W are kept where nothing else is said about ``stride`` and ``padding``.

    Example:
        >>> unit(3, 8, (1, 7))(torch.rand(2, 3, 9, 9)).shape
        torch.Size([2, 8, 9, 9])
    """
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    dilation = options.get("dilation", 1)
    options.setdefault("padding", (dilation * (rows - 1) // 2, dilation * (columns - 1) // 2))
    convolution = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *([nn.ReLU()] if active else []))


def settled(model: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """The model in eval mode, with weights that keep its maps alive through any depth.

    Convolutions are drawn for the ReLU behind them (He et al., ICCV 2015, section 2.2), and one pass in training mode
    gives every batch normalisation the statistics of the maps that it meets.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.train()
            norm.momentum = None  # the mean of all passes, of which there is one
        with torch.no_grad():
            model(*example)
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()
