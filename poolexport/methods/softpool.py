"""SoftPool: the mean of every window, weighted by the softmax of its own cells.

    w_i = exp(x_i) / (exp(x_1) + ... + exp(x_m))      over the window, channel by channel
    y = w_1 x_1 + ... + w_m x_m

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer, require_choice
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
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
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

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
        if self.channel_weights == "per_channel":
            y = softmax_pool(x, x, **self.window.onnx())
        else:
            # In float64: the logits of whole places are as large as the cells, and their differences decide.
            wide = x.double()
            y = softmax_pool(wide, _log_sum_exp(wide), **self.window.onnx()).to(x.dtype)
        return y.relu() if self.clamp_negative else y

    def extra_options(self) -> dict[str, Any]:
        return {"channel_weights": self.channel_weights, "clamp_negative": self.clamp_negative}


def _log_sum_exp(x: Tensor) -> Tensor:
    """Over the channels. Not torch's, which becomes ReduceLogSumExp: onnxruntime's loses small terms beside -inf."""
    largest = x.amax(1, keepdim=True).detach()
    level = torch.where(largest.isinf(), torch.zeros_like(largest), largest)
    return level + torch.exp(x - level).sum(1, keepdim=True).log()


class SoftPool1d(_SoftPool):
    rank = 1


class SoftPool2d(_SoftPool):
    rank = 2


class SoftPool3d(_SoftPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis = 2,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    channel_weights: str = "per_channel",
    clamp_negative: bool = False,
) -> Floats:
    """SoftPool, slowly, in float64; `clamp_negative` raises negative results to 0.

    A cell of weight 0, as -inf has, adds nothing. A window of nothing but -inf, or with +inf or NaN, is NaN.
    "summed" looks at all channels at once: one +inf or NaN spoils every channel, and a cell of -inf whose
    place has weight through another channel gives -inf.
    """
    if channel_weights not in ("per_channel", "summed"):
        raise ValueError(f"unknown channel_weights {channel_weights!r}")
    x = np.asarray(x, dtype=np.float64)
    window = (kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, _, _ in each_window(x, *window):
        weights = _weights(cells, shared=channel_weights == "summed")
        # Never 0 * -inf; NaN weights must stay, so compare with 0 and not with what is above it.
        y[(..., *index)] = exact_sum(weights * np.where(weights == 0, 0.0, cells))
    return np.maximum(y, 0.0) if clamp_negative else y


def _weights(cells: Floats, shared: bool) -> Floats:
    """Return the weight of each cell, (N, C, m), or (N, 1, m) where the channels share it."""
    with np.errstate(invalid="ignore", over="ignore"):
        if shared:
            shifted = np.exp(cells - cells.max(axis=(1, 2), keepdims=True))
            shifted = exact_sum(np.moveaxis(shifted, 1, -1))[:, None, :]
        else:
            shifted = np.exp(cells - cells.max(axis=-1, keepdims=True))
        return shifted / exact_sum(shifted)[..., None]


METHOD = Method(
    (SoftPool1d, SoftPool2d, SoftPool3d),
    summary="The mean of every window, weighted by the softmax of its own cells.",
    paper=Paper(
        "Refining activation downsampling with SoftPool", "Stergiou, Poppe, Kalliatakis", 2021, "arXiv:2101.00440"
    ),
    reference=reference,
    training="softmax-weighted mean",
    inference="softmax-weighted mean",
    operators=(softmax_pool,),
    cases=(
        Case("2x2", {"kernel_size": 2}),
        Case("overlapping", {"kernel_size": 3, "stride": 2, "padding": 1}),
        Case("ceil", {"kernel_size": 3, "stride": 2, "ceil_mode": True}, shape=(1, 2, 8, 10)),
        Case("stride-1", {"kernel_size": (3, 2), "stride": 1}),
        Case("summed", {"kernel_size": 2, "channel_weights": "summed"}),
        Case("official-cpu", {"kernel_size": 2, "channel_weights": "summed", "clamp_negative": True}),
        Case("1d", {"kernel_size": 3, "stride": 2}, shape=(2, 3, 11)),
        Case("3d", {"kernel_size": 2, "ceil_mode": True}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, True),
        "channel_weights": ("per_channel", "summed"),
        "clamp_negative": (False, True),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"channel_weights": "mean"}, ValueError, "channel_weights must be one of"),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
    ),
    notes=(
        "The authors' CPU path is another function: channel_weights='summed', clamp_negative=True.",
        "A window of nothing but -inf, or with +inf, is NaN; the authors' CUDA kernel answers 0 there.",
    ),
)
