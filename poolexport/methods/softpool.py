"""SoftPool: the mean of every window, weighted by the softmax of its own cells.

    w_i = exp(x_i) / sum(exp(x_j))      over the window, channel by channel
    y = sum(w_i x_i)

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer, require_choice

from poolexport_ops._window import Ints
from poolexport_ops.softmax_pool import softmax_pool


class _SoftPool(WindowLayer):
    """Softmax-weighted mean of every window.

    Two functions go by this name. The paper weighs every channel by itself. The CPU path of the authors' package sums
    exp(x) over the channels first, so that all channels share one weight map, and then drops negative results; models
    trained with it need ``channel_weights="summed", clamp_negative=True``.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: cells added on both sides, at most half the kernel; they carry no weight.
        ceil_mode: keep the last, partial window.
        channel_weights: "per_channel" (the paper) or "summed" (the package on CPU).
        clamp_negative: replace negative results by 0 (the package on CPU).

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``
        (the floor is a ceiling in ceil mode).

    Raises:
        ValueError: an option out of range, an input of another rank, or one smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import SoftPool2d
        >>> SoftPool2d(2)(torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]])).round(decimals=3)
        tensor([[[[1.4220]]]])

    Source:
        Stergiou, Poppe, Kalliatakis, ICCV 2021, eq. 1 and 2; package alexandrosstergiou/SoftPool (idea.py).
    """

    def __init__(
        self,
        kernel_size: Ints = 2,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        channel_weights: str = "per_channel",
        clamp_negative: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        require_choice("channel_weights", channel_weights, ("per_channel", "summed"))
        self.channel_weights = channel_weights
        self.clamp_negative = clamp_negative

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        logits = x if self.channel_weights == "per_channel" else torch.logsumexp(x, dim=1, keepdim=True)
        y = softmax_pool(x, logits, **self.window.onnx())
        return y.relu() if self.clamp_negative else y

    def extra_options(self) -> dict[str, Any]:
        return {"channel_weights": self.channel_weights, "clamp_negative": self.clamp_negative}


class SoftPool1d(_SoftPool):
    rank = 1


class SoftPool2d(_SoftPool):
    rank = 2


class SoftPool3d(_SoftPool):
    rank = 3
