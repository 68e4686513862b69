"""Gated max-average pooling (Lee et al.): maximum and average of every window, blended by what the window holds.

g = 1 / (1 + exp(-(w_1 x_1 + ... + w_K x_K)))      over the window, channel by channel
y = g max(x) + (1 - g) mean(x)

The gating mask w is learned: one for the layer, or one per channel. Training and inference are the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer, counted_pads, widened
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape, per_axis
from poolexport_ops._window import Ints
from poolexport_ops.average_pool import average_pool
from poolexport_ops.max_pool import max_pool
from poolexport_ops.weighted_sum_pool import weighted_sum_pool


class _GatedMixedPool(WindowLayer):
    """Blend of maximum and average whose share every window decides for itself, through a learned mask.

    The authors' Caffe layer is ``GatedMixedPool2d(3, 2, ceil_mode=True, count_include_pad=False)``.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: cells added on both sides, at most half the kernel: -inf for the maximum, zeros for the average and
            the gate.
        ceil_mode: keep the last, partial window.
        count_include_pad: count padded cells in the divisor of the average.
        channels: learn one mask per channel, for this many; None learns one for the layer.
        bias: add a learned number to the gate's logit; the paper has none.

    Parameters:
        gate_weight: the mask, shape (1, 1, *kernel_size) or (channels, 1, *kernel_size), as a depthwise convolution
            holds it; starts at 0, where every gate is one half.
        gate_bias: shape (1,) or (channels,), where asked for; starts at 0.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range, an input of another rank, of another number of channels, or one smaller
            than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import GatedMixedPool2d
        >>> pool = GatedMixedPool2d(2)
        >>> _ = torch.nn.init.constant_(pool.gate_weight, 1.0)
        >>> pool(torch.tensor([[[[-6.0, 1.0], [2.0, 3.0]], [[0.0, 1.0], [2.0, 97.0]]]])).detach()
        tensor([[[[ 1.5000]],
        <BLANKLINE>
                 [[97.0000]]]])

    Source:
        Lee, Gallagher, Tu, AISTATS 2016, section 3.2 ("gated" max-average pooling); the authors' Caffe layer
        TreepoolMaxAve.
    """

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        channels: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be a positive int or None, got {channels!r}")
        self.count_include_pad = count_include_pad
        self.channels = channels
        self.gate_weight = nn.Parameter(torch.zeros(channels or 1, 1, *self.window.kernel_shape))
        self.gate_bias = nn.Parameter(torch.zeros(channels or 1)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        if self.channels is not None and x.shape[1] != self.channels:
            raise ValueError(f"the layer has {self.channels} channels, the input has {x.shape[1]}")
        wide = widened(x)
        logit = weighted_sum_pool(wide, widened(self.gate_weight).flatten(1), **self.window.onnx())
        if self.gate_bias is not None:
            logit = logit + widened(self.gate_bias).reshape(1, -1, *(1,) * self.rank)
        maximum = max_pool(wide, **self.window.onnx())
        mean = average_pool(wide, **self.window.onnx(), counted_pads=counted_pads(self.window, self.count_include_pad))
        # 1 - sigmoid(z) is 0 from z = 17 on; sigmoid(-z) keeps its digits.
        return (logit.sigmoid() * maximum + (-logit).sigmoid() * mean).to(x.dtype)

    def extra_options(self) -> dict[str, Any]:
        options = {"count_include_pad": self.count_include_pad, "channels": self.channels}
        return {**options, "bias": self.gate_bias is not None}


class GatedMixedPool1d(_GatedMixedPool):
    rank = 1


class GatedMixedPool2d(_GatedMixedPool):
    rank = 2


class GatedMixedPool3d(_GatedMixedPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    channels: int | None = None,
    bias: bool = False,
    gate_weight: ArrayLike = 0.0,
    gate_bias: ArrayLike = 0.0,
) -> Floats:
    """Gated max-average pooling, slowly, in float64; a mask of zeros is the layer's start.

    The formula holds as written: a shut gate on an infinity is 0 * inf, which is NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    axes, entries = x.ndim - 2, channels or 1
    k, p = per_axis(kernel_size, axes), per_axis(padding, axes)
    s = k if stride is None else per_axis(stride, axes)
    mask = np.broadcast_to(np.asarray(gate_weight, dtype=np.float64), (entries, 1, *k)).reshape(entries, -1)
    offset = np.broadcast_to(np.asarray(gate_bias, dtype=np.float64), (entries,))
    window = (kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, counted, positions in each_window(x, *window):
        # Where in the window each real cell lies, which is the entry of the mask that belongs to it.
        places = np.array(np.unravel_index(positions, x.shape[2:]))
        corner = np.array([i * s_ - p_ for i, s_, p_ in zip(index, s, p, strict=True)])
        entry = np.ravel_multi_index(tuple(places - corner[:, None]), k)
        maximum = cells.max(axis=-1)
        mean = exact_sum(cells, counted if count_include_pad else cells.shape[-1])
        with np.errstate(invalid="ignore"):
            logit = exact_sum(mask[:, entry] * cells) + offset
            y[(..., *index)] = _gate(logit) * maximum + _gate(-logit) * mean
    return y


def _gate(logit: Floats) -> Floats:
    return np.vectorize(lambda z: 1 / (1 + math.exp(-z)) if z > -700 else math.exp(z), otypes=[float])(logit)


MASK = [0.3, -0.2, 0.5, 0.1, -0.4, 0.6, 0.2, -0.1, 0.4]


def _mask(entries: int, *kernel: int) -> np.ndarray:
    """Weights that differ from cell to cell and from channel to channel."""
    return np.resize(MASK, (entries, 1, *kernel)).astype(np.float32)


CANCELS = "the gate's logit is a sum of products that cancel: at cells of 1e4 its rounding, 1e-3, moves the gate"

METHOD = Method(
    (GatedMixedPool1d, GatedMixedPool2d, GatedMixedPool3d),
    summary="Maximum and mean of every window, blended by a gate that a learned mask opens window by window.",
    paper=Paper(
        "Generalizing Pooling Functions in Convolutional Neural Networks: Mixed, Gated, and Tree",
        "Lee, Gallagher, Tu",
        2016,
        "arXiv:1509.08985",
    ),
    reference=reference,
    training="blend by a learned gate that depends on the window",
    inference="the same blend",
    operators=(max_pool, average_pool, weighted_sum_pool),
    cases=(
        Case("2x2", {"kernel_size": 2}, state={"gate_weight": _mask(1, 2, 2)}),
        Case("initial", {"kernel_size": (3, 2), "stride": 2}),
        Case(
            "official",
            {"kernel_size": 3, "stride": 2, "ceil_mode": True, "count_include_pad": False},
            shape=(1, 2, 8, 10),
            state={"gate_weight": _mask(1, 3, 3)},
        ),
        Case(
            "per-channel",
            {"kernel_size": 3, "stride": 2, "padding": 1, "channels": 3},
            state={"gate_weight": _mask(3, 3, 3)},
        ),
        Case(
            "bias",
            {"kernel_size": 2, "stride": 1, "bias": True},
            state={"gate_weight": _mask(1, 2, 2), "gate_bias": [-0.7]},
            slack=100.0,
            why=CANCELS,
        ),
        Case(
            "bias-per-channel",
            {"kernel_size": (2, 3), "stride": (3, 2), "channels": 3, "bias": True},
            state={"gate_weight": _mask(3, 2, 3), "gate_bias": [0.4, -1.0, 2.0]},
            slack=100.0,
            why=CANCELS,
        ),
        Case(
            "exclude-pad",
            {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
            state={"gate_weight": _mask(1, 3, 3)},
        ),
        Case("1d", {"kernel_size": 3, "stride": 2}, shape=(2, 3, 11), state={"gate_weight": _mask(1, 3)}),
        Case(
            "3d", {"kernel_size": 2, "ceil_mode": True}, shape=(1, 2, 5, 6, 7), state={"gate_weight": _mask(1, 2, 2, 2)}
        ),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, True),
        "count_include_pad": (True, False),
        "channels": (None, 3),
        "bias": (False, True),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "channels": 0}, ValueError, "channels must be a positive int"),
        Limit({"kernel_size": 2, "channels": 2}, ValueError, "the layer has 2 channels", shape=(1, 3, 4, 4)),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
    ),
    notes=(
        "The authors' Caffe layer has one mask, ceil mode and no padding, and averages real cells only: "
        "ceil_mode=True, count_include_pad=False; their example draws the mask from N(0, 0.1).",
        "Ports that add a bias need bias=True; those whose mask is a full convolution over the channels are another "
        "function.",
    ),
)
