"""Max-blur pooling (Zhang): dense maximum, then a low-pass filter with stride.

    m = max over every window of kernel_size, with stride 1
    y_i = sum over j of w_j m_(s i - b + j)      w_j = C(k - 1, j) / 2^(k - 1), along every axis

k is the size of the filter and s the stride; the b cells of m before the first one, and those behind the last, are
mirrored, repeated or zero. Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice, widened
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport.reference import per_axis as sizes_per_axis
from poolexport_ops import Window, per_axis, require_rank
from poolexport_ops._blur import PAD_RULES, binomial_filter, blur
from poolexport_ops._border import BORDERS
from poolexport_ops._window import Ints
from poolexport_ops.max_pool import max_pool
from poolexport_ops.weighted_sum_pool import weighted_sum_pool


class _MaxBlurPool(Layer):
    """Maximum with stride 1, then a binomial low-pass filter with stride.

    The paper and its package replace a 2x2 maximum with stride 2 by the defaults; timm puts ``kernel_size=3, padding=1,
    filt_size=3`` into the stem of its anti-aliased ResNets.

    Args:
        kernel_size: window of the maximum, in cells, an int or one per spatial axis.
        padding: cells of -inf that the maximum sees on both sides, at most half its window.
        filt_size: cells of the filter, an int or one per spatial axis; 1 is plain subsampling.
        stride: cells between results, an int or one per spatial axis.
        pad_mode: what lies beyond the border of the maxima: "reflect" (mirrored about the outermost), "replicate", or
            "zero".
        pad_rule: how many cells lie there, for size k and stride s: "zhang" ((k - 1) // 2 before and k // 2 after),
            "timm" ((k + s - 2) // 2 on both sides), or "kornia" ((k - 1) // 2 on both sides).

    Buffers:
        filt: the filter, (1, 1, *filt_size); not saved.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``m = n + 2 padding - kernel_size + 1`` and
        ``output = floor((m + before + after - filt_size) / stride) + 1``; by the rule of "zhang" that is
        ``ceil(m / stride)``.

    Raises:
        ValueError: an option out of range, an input of another rank, smaller than a window, or with too few maxima to
            be mirrored.

    Example:
        >>> import torch
        >>> from poolexport.nn import MaxBlurPool1d
        >>> MaxBlurPool1d(filt_size=3)(torch.tensor([[[4.0, 8.0, 0.0, 4.0, 4.0]]]))
        tensor([[[8., 5.]]])

    Source:
        Zhang, ICML 2019, section 3.2; package antialiased-cnns; timm models/resnet.py; kornia filters/blur_pool.py.
    """

    rank: ClassVar[int]
    filt: Tensor

    def __init__(
        self,
        kernel_size: Ints = 2,
        padding: Ints = 0,
        filt_size: Ints = 4,
        stride: Ints = 2,
        pad_mode: str = "reflect",
        pad_rule: str = "zhang",
    ) -> None:
        super().__init__()
        self.dense = Window.from_torch(self.rank, kernel_size, 1, padding)
        self.kernel_size = kernel_size
        self.padding = padding
        self.filt_size = per_axis("filt_size", filt_size, self.rank, minimum=1)
        self.stride = per_axis("stride", stride, self.rank, minimum=1)
        require_choice("pad_mode", pad_mode, BORDERS)
        require_choice("pad_rule", pad_rule, tuple(PAD_RULES))
        self.pad_mode = pad_mode
        self.pad_rule = pad_rule
        self.register_buffer("filt", binomial_filter(self.filt_size)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        maxima = max_pool(widened(x), **self.dense.onnx())
        return blur(maxima, widened(self.filt), self.stride, self.pad_mode, self.pad_rule).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, padding={self.padding}, filt_size={self.filt_size}, "
            f"stride={self.stride}, pad_mode={self.pad_mode!r}, pad_rule={self.pad_rule!r}"
        )


class MaxBlurPool1d(_MaxBlurPool):
    rank = 1


class MaxBlurPool2d(_MaxBlurPool):
    rank = 2


class MaxBlurPool3d(_MaxBlurPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis = 2,
    padding: PerAxis = 0,
    filt_size: PerAxis = 4,
    stride: PerAxis = 2,
    pad_mode: str = "reflect",
    pad_rule: str = "zhang",
) -> Floats:
    """Max-blur pooling, slowly, in float64.

    NaN wins every maximum that sees it; NaN and infinite maxima spread to every filter window that holds them.
    """
    x = np.asarray(x, dtype=np.float64)
    axes = x.ndim - 2
    maxima = np.empty(x.shape[:2] + output_shape(x.shape[2:], kernel_size, 1, padding))
    for index, cells, _, _ in each_window(x, kernel_size, 1, padding):
        maxima[(..., *index)] = cells.max(axis=-1)

    k, s = sizes_per_axis(filt_size, axes), sizes_per_axis(stride, axes)
    beyond = [_beyond(k_, s_, pad_rule) for k_, s_ in zip(k, s, strict=True)]
    modes: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "zero": "constant"}
    padded = np.pad(maxima, [(0, 0), (0, 0), *beyond], mode=modes[pad_mode])
    weights = np.array(
        [math.prod(math.comb(k_ - 1, j) for j, k_ in zip(cell, k)) for cell in itertools.product(*map(range, k))]
    )
    y = np.empty(x.shape[:2] + output_shape(padded.shape[2:], k, s))
    for index, cells, _, _ in each_window(padded, k, s):
        y[(..., *index)] = exact_sum(weights / weights.sum() * cells)
    return y


def _beyond(k: int, s: int, rule: str) -> tuple[int, int]:
    """Cells before the first maximum of an axis and after its last."""
    if rule == "zhang":
        return math.floor((k - 1) / 2), math.ceil((k - 1) / 2)
    both = {"timm": ((s - 1) + (k - 1)) // 2, "kornia": (k - 1) // 2}[rule]
    return both, both


METHOD = Method(
    (MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d),
    summary="The maximum with stride 1, then a binomial low-pass filter with stride.",
    paper=Paper("Making Convolutional Networks Shift-Invariant Again", "Zhang", 2019, "arXiv:1904.11486"),
    reference=reference,
    training="dense maximum, then blur and subsample",
    inference="dense maximum, then blur and subsample",
    operators=(max_pool, weighted_sum_pool),
    cases=(
        Case("official", {}),
        Case("timm-stem", {"kernel_size": 3, "padding": 1, "filt_size": 3, "pad_rule": "timm"}, shape=(1, 2, 8, 10)),
        Case("kornia", {"kernel_size": 2, "filt_size": 3, "pad_mode": "zero", "pad_rule": "kornia"}),
        Case("filter-5", {"filt_size": 5}, shape=(1, 2, 8, 10)),
        Case("replicate", {"kernel_size": (1, 3), "filt_size": 7, "pad_mode": "replicate"}),
        Case("box", {"filt_size": 2, "stride": (1, 3)}),
        Case("subsample", {"filt_size": 1, "stride": 2}),
        Case("1d", {"filt_size": 3}, shape=(2, 3, 11)),
        Case("3d", {"filt_size": 3}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "padding": (0, 0, 1),
        "filt_size": (1, 2, 3, 4, 5),
        "stride": (1, 2, 3),
        "pad_mode": ("reflect", "replicate", "zero"),
        "pad_rule": ("zhang", "timm", "kornia"),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "padding": 2}, ValueError, "padding must be at most half of the kernel's extent"),
        Limit({"filt_size": 0}, ValueError, "filt_size must be a positive int"),
        Limit({"stride": 0}, ValueError, "stride must be a positive int"),
        Limit({"pad_mode": "same"}, ValueError, "pad_mode must be one of"),
        Limit({"pad_rule": "same"}, ValueError, "pad_rule must be one of"),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9)),
        Limit({"filt_size": 5}, ValueError, "the mirror image does not fit", shape=(1, 1, 3, 9)),
    ),
    notes=(
        "Even filters are padded differently by the author's package, timm and kornia: pad_rule.",
        "kornia pads with zeros: pad_mode='zero', pad_rule='kornia'. Its ceil_mode changes nothing, since the maximum "
        "has stride 1.",
        "An exported graph does not refuse inputs too short to be mirrored; the runtime answers something else there.",
    ),
)
