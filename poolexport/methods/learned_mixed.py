"""Learned mixed pooling (Lee et al.): a trained blend of maximum and average.

    y = alpha max(x) + (1 - alpha) mean(x)

``alpha`` is one number for the layer, or one per channel; it starts at 0.5 and is not held inside [0, 1]. Training and
inference are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer, counted_pads, widened
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport_ops._window import Ints
from poolexport_ops.average_pool import average_pool
from poolexport_ops.max_pool import max_pool


class _LearnedMixedPool(WindowLayer):
    """Blend of maximum and average with a learned share.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: cells added on both sides, at most half the kernel: -inf for the maximum, zeros for the average.
        ceil_mode: keep the last, partial window.
        count_include_pad: count padded cells in the divisor of the average.
        channels: learn one share per channel, for this many; None learns one for the layer.

    Parameters:
        alpha: the share of the maximum, shape (1,) or (channels,).

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range, an input of another rank, of another number of channels, or one smaller
            than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import LearnedMixedPool2d
        >>> LearnedMixedPool2d(2)(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])).item()
        4.5

    Source:
        Lee, Gallagher, Tu, AISTATS 2016, section 3.1 ("mixed" max-average pooling).
    """

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        channels: int | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be a positive int or None, got {channels!r}")
        self.count_include_pad = count_include_pad
        self.channels = channels
        self.alpha = nn.Parameter(torch.full((channels or 1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        if self.channels is not None and x.shape[1] != self.channels:
            raise ValueError(f"the layer has {self.channels} channels, the input has {x.shape[1]}")
        alpha = widened(self.alpha).reshape(1, -1, *(1,) * self.rank)
        wide = widened(x)
        maximum = max_pool(wide, **self.window.onnx())
        mean = average_pool(wide, **self.window.onnx(), counted_pads=counted_pads(self.window, self.count_include_pad))
        return (alpha * maximum + (1 - alpha) * mean).to(x.dtype)

    def extra_options(self) -> dict[str, Any]:
        return {} if self.channels is None else {"channels": self.channels}


class LearnedMixedPool1d(_LearnedMixedPool):
    rank = 1


class LearnedMixedPool2d(_LearnedMixedPool):
    rank = 2


class LearnedMixedPool3d(_LearnedMixedPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    channels: int | None = None,
    alpha: ArrayLike | None = None,
) -> Floats:
    """Learned mixed pooling, slowly, in float64; None for `alpha` is its start, 0.5.

    The formula holds as written for every alpha: at 0 or 1 an infinity in the other branch still gives NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    entries = channels or 1
    share = np.full(entries, 0.5) if alpha is None else np.asarray(alpha, dtype=np.float64).reshape(-1)
    if share.shape != (entries,):
        raise ValueError(f"alpha must hold {entries} number(s), got {share.size}")
    window = (kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, counted, _ in each_window(x, *window):
        mean = exact_sum(cells, counted if count_include_pad else cells.shape[-1])
        with np.errstate(invalid="ignore", over="ignore"):
            y[(..., *index)] = share * cells.max(axis=-1) + (1 - share) * mean
    return y


METHOD = Method(
    (LearnedMixedPool1d, LearnedMixedPool2d, LearnedMixedPool3d),
    summary="A learned blend of the maximum and the mean of every window.",
    paper=Paper(
        "Generalizing Pooling Functions in Convolutional Neural Networks: Mixed, Gated, and Tree",
        "Lee, Gallagher, Tu",
        2016,
        "arXiv:1509.08985",
    ),
    reference=reference,
    training="blend with a learned share",
    inference="the same blend",
    operators=(max_pool, average_pool),
    cases=(
        Case("2x2", {"kernel_size": 2}, state={"alpha": [0.3]}),
        Case("initial", {"kernel_size": 3, "stride": 2}),
        Case("outside-0-1", {"kernel_size": 2, "ceil_mode": True}, state={"alpha": [1.7]}),
        Case(
            "per-channel",
            {"kernel_size": 3, "stride": 2, "padding": 1, "channels": 3},
            state={"alpha": [0.1, 0.6, -0.4]},
        ),
        Case("exclude-pad", {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
        Case("1d", {"kernel_size": 3, "stride": 2}, shape=(2, 3, 11), state={"alpha": [0.8]}),
        Case("3d", {"kernel_size": 2}, shape=(1, 2, 5, 6, 7), state={"alpha": [0.8]}),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, True),
        "count_include_pad": (True, False),
        "channels": (None, 3),
    },
    limits=(
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "channels": 0}, ValueError, "channels must be a positive int"),
        Limit({"kernel_size": 2, "channels": 2}, ValueError, "the layer has 2 channels", shape=(1, 3, 4, 4)),
    ),
)
