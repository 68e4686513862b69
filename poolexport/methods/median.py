"""Median pooling: the middle cell of every window, by value.

    x_(1) <= x_(2) <= ... <= x_(m)      the m cells of the window
    y = x_((m + 1) / 2)                               for odd m
    y = x_(m / 2), or (x_(m / 2) + x_(m / 2 + 1)) / 2      for even m

With stride 1 this is the median filter. Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport.reference import per_axis as sizes_per_axis
from poolexport_ops import Window, per_axis, require_rank
from poolexport_ops._border import continued
from poolexport_ops._window import Ints
from poolexport_ops.sorted_weighted_pool import sorted_weighted_pool


class _MedianPool(Layer):
    """Median of every window.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows, an int or one per spatial axis; None means the kernel size.
        padding: cells added on both sides.
        pad_mode: what they hold: "reflect" (the mirror image, as in timm; fewer cells than the axis is long), or
            "absent" (nothing: the median of the real cells; at most half the kernel).
        even: the median of an even number of cells: "lower" (the smaller of the two in the middle, as torch.median and
            timm have it) or "mean" (their mean).

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``.

    Raises:
        ValueError: an option out of range, an input of another rank, smaller than the window, or too short to be
            mirrored.

    Example:
        >>> import torch
        >>> from poolexport.nn import MedianPool2d
        >>> MedianPool2d(2, even="mean")(torch.tensor([[[[1.0, 2.0], [8.0, 4.0]]]])).item()
        3.0

    Source:
        Tukey, 1977, chapter 7 (running medians); timm layers/median_pool.py.
    """

    rank: ClassVar[int]

    def __init__(
        self,
        kernel_size: Ints = 3,
        stride: Ints | None = 1,
        padding: Ints = 0,
        pad_mode: str = "reflect",
        even: str = "lower",
    ) -> None:
        super().__init__()
        require_choice("pad_mode", pad_mode, ("reflect", "absent"))
        require_choice("even", even, ("lower", "mean"))
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = per_axis("padding", padding, self.rank, minimum=0)
        self.pad_mode = pad_mode
        self.even = even
        inside = padding if pad_mode == "absent" else 0
        self.window = Window.from_torch(self.rank, kernel_size, stride, inside)

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        if self.pad_mode == "reflect":
            x = continued(x, self.padding, self.padding, "reflect")
        return sorted_weighted_pool(x, **self.window.onnx(), weights=self._weights())

    def _weights(self) -> list[float]:
        """For windows of 1, 2, ... real cells, the weight of every rank, the largest cell's first."""
        size = self.window.size
        rows = np.zeros((size, size))
        for m in range(1, size + 1):
            middle = [m // 2 - 1, m // 2] if self.even == "mean" and m % 2 == 0 else [m // 2]
            rows[m - 1, middle] = 1 / len(middle)
        return rows.ravel().tolist()

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"pad_mode={self.pad_mode!r}, even={self.even!r}"
        )


class MedianPool1d(_MedianPool):
    rank = 1


class MedianPool2d(_MedianPool):
    rank = 2


class MedianPool3d(_MedianPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis = 3,
    stride: PerAxis | None = 1,
    padding: PerAxis = 0,
    pad_mode: str = "reflect",
    even: str = "lower",
) -> Floats:
    """Median pooling, slowly, in float64; infinities are values like others, and NaN makes its windows NaN."""
    x = np.asarray(x, dtype=np.float64)
    if pad_mode == "reflect":
        amounts = sizes_per_axis(padding, x.ndim - 2)
        x, padding = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in amounts)], mode="reflect"), 0
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], kernel_size, stride, padding))
    for index, cells, _, _ in each_window(x, kernel_size, stride, padding):
        ascending = np.sort(cells, axis=-1)
        low, high = (cells.shape[-1] - 1) // 2, cells.shape[-1] // 2
        middle = ascending[..., [low]] if even == "lower" else ascending[..., [low, high]]
        spoilt = np.isnan(cells).any(axis=-1)
        y[(..., *index)] = np.where(spoilt, np.nan, exact_sum(middle, middle.shape[-1]))
    return y


METHOD = Method(
    (MedianPool1d, MedianPool2d, MedianPool3d),
    summary="The median of every window.",
    paper=Paper("Exploratory Data Analysis", "Tukey", 1977, "ISBN 0-201-07616-0"),
    reference=reference,
    training="median",
    inference="median",
    operators=(sorted_weighted_pool,),
    cases=(
        Case("3x3", {}),
        Case("timm", {"kernel_size": 3, "stride": 1, "padding": 1}),
        Case("2x2", {"kernel_size": 2, "stride": None}, shape=(1, 2, 8, 10)),
        Case("mean", {"kernel_size": 2, "stride": 2, "even": "mean"}),
        Case("absent", {"kernel_size": 3, "stride": 2, "padding": 1, "pad_mode": "absent"}),
        Case("absent-mean", {"kernel_size": 3, "stride": 2, "padding": 1, "pad_mode": "absent", "even": "mean"}),
        Case("oblong", {"kernel_size": (1, 4), "padding": (0, 2), "even": "mean"}),
        Case("1d", {"kernel_size": 5, "padding": 2}, shape=(2, 3, 11)),
        Case("3d", {"kernel_size": 2, "stride": 2}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "pad_mode": ("reflect", "absent"),
        "even": ("lower", "mean"),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"padding": -1}, ValueError, "padding must be a non-negative int"),
        Limit({"pad_mode": "zero"}, ValueError, "pad_mode must be one of"),
        Limit({"even": "upper"}, ValueError, "even must be one of"),
        Limit({"padding": 2, "pad_mode": "absent"}, ValueError, "padding must be at most half of the kernel's extent"),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
        Limit({"padding": 3}, ValueError, "the mirror image does not fit", shape=(1, 1, 3, 9)),
    ),
    notes=(
        "timm's same=True pads by an amount that depends on the input's size; give the padding instead.",
        "An exported graph does not refuse inputs too short to be mirrored; the runtime answers something else there.",
    ),
)
