"""Average pooling: the mean of every window, by one of three divisors.

    y = (x_1 + ... + x_m) / divisor      over the real cells of the window

The divisor is ``divisor_override`` if given; else the positions inside the padded input (``count_include_pad``); else
m. Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer, counted_pads
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport_ops._window import Ints
from poolexport_ops.average_pool import average_pool


class _AvgPool(WindowLayer):
    """Mean of every window.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: zeros added on both sides, at most half the kernel.
        ceil_mode: keep the last, partial window.
        count_include_pad: count padded cells in the divisor (never what hangs over beyond them).
        divisor_override: the divisor of every window.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range, an input of another rank, or one smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import AvgPool2d
        >>> AvgPool2d(2, divisor_override=2)(torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]]))
        tensor([[[[5.]]]])

    Source:
        LeCun, Bottou, Bengio, Haffner, 1998, section II.B; torch.nn.AvgPool2d.
    """

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        if divisor_override is not None and divisor_override < 1:
            raise ValueError(f"divisor_override must be a positive int or None, got {divisor_override!r}")
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        return average_pool(
            x,
            **self.window.onnx(),
            counted_pads=counted_pads(self.window, self.count_include_pad),
            divisor_override=self.divisor_override or 0,
        )

    def extra_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {} if self.count_include_pad else {"count_include_pad": False}
        return options if self.divisor_override is None else {**options, "divisor_override": self.divisor_override}


class AvgPool1d(_AvgPool):
    rank = 1


class AvgPool2d(_AvgPool):
    rank = 2


class AvgPool3d(_AvgPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Floats:
    """Average pooling, slowly, in float64.

    A window that hangs over the far end under `ceil_mode` counts no position beyond n + padding.
    """
    x = np.asarray(x, dtype=np.float64)
    window = (kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, counted, _ in each_window(x, *window):
        divisor = counted if count_include_pad else cells.shape[-1]
        if divisor_override is not None:
            divisor = divisor_override
        y[(..., *index)] = exact_sum(cells, divisor)
    return y


METHOD = Method(
    (AvgPool1d, AvgPool2d, AvgPool3d),
    summary="The mean of every window.",
    paper=Paper(
        "Gradient-based learning applied to document recognition",
        "LeCun, Bottou, Bengio, Haffner",
        1998,
        "doi:10.1109/5.726791",
    ),
    reference=reference,
    training="mean",
    inference="mean",
    operators=(average_pool,),
    cases=(
        Case("2x2", {"kernel_size": 2}),
        Case("include-pad", {"kernel_size": 3, "stride": 2, "padding": 1}),
        Case("exclude-pad", {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
        Case("ceil-include-pad", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, shape=(1, 2, 8, 10)),
        Case(
            "ceil-exclude-pad",
            {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
            shape=(1, 2, 8, 10),
        ),
        Case("off-edge-ceil", {"kernel_size": 2, "stride": 3, "ceil_mode": True}, shape=(1, 2, 7, 8)),
        Case("divisor", {"kernel_size": 3, "stride": 2, "padding": 1, "divisor_override": 5}),
        Case("divisor-ceil", {"kernel_size": (3, 2), "stride": 2, "divisor_override": 1, "ceil_mode": True}),
        Case("1d", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, shape=(2, 3, 10)),
        Case("3d", {"kernel_size": 2, "ceil_mode": True}, shape=(1, 2, 5, 6, 7)),
        Case("3d-divisor", {"kernel_size": 2, "divisor_override": 3}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, True),
        "count_include_pad": (True, False),
        "divisor_override": (None, None, 1, 5),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "stride": 0}, ValueError, "stride must be a positive int"),
        Limit({"kernel_size": 2, "padding": 2}, ValueError, "at most half of the kernel's extent"),
        Limit({"kernel_size": 2, "divisor_override": 0}, ValueError, "divisor_override must be a positive int"),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="numbers"),
    ),
    notes=(
        "torch.onnx.export drops divisor_override without a word; here it is part of the operator.",
        "The ceil_mode attribute of AveragePool is computed wrongly by onnxruntime before 1.30; it is not used.",
    ),
)
