"""LP pooling, or power-average pooling: the p-th root of a sum of p-th powers.

    y = (K / m (x_1^p + ... + x_m^p))^(1/p)      K cells in a full window, m of them inside the input

``signed`` takes the power of the cell itself, so that y is NaN where a power or the root is not real; otherwise |x| is
taken. p = inf gives max |x| and p = -inf gives min |x|. Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape, per_axis, power_of_two
from poolexport_ops._window import Ints
from poolexport_ops.power_average_pool import power_average_pool


class _LPPool(WindowLayer):
    """p-norm of every window.

    Args:
        norm_type: the order p, any real number but 0, or an infinity.
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        ceil_mode: keep the last, partial window; its sum is scaled up to a full one's.
        signed: True is torch 2.13's meaning, powers of the cells themselves: p = 1 is a plain sum, and odd or
            fractional p give NaN where there is no real root. False takes |x|, the norm of the literature.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n - kernel_size) / stride) + 1``
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range, an input of another rank, or one smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import LPPool2d
        >>> LPPool2d(2, 2)(torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]]))
        tensor([[[[5.]]]])

    Source:
        Sermanet, Chintala, LeCun, ICPR 2012, section 2.2; torch.nn.LPPool2d.
    """

    def __init__(
        self,
        norm_type: float,
        kernel_size: Ints,
        stride: Ints | None = None,
        ceil_mode: bool = False,
        signed: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, ceil_mode=ceil_mode)
        self.norm_type = float(norm_type)
        if self.norm_type == 0 or math.isnan(self.norm_type):
            raise ValueError(f"norm_type must be a number other than 0, got {norm_type!r}")
        self.signed = signed

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        return power_average_pool(x, **self.window.onnx(), p=repr(self.norm_type), signed=self.signed)

    def extra_options(self) -> dict[str, Any]:
        return {"norm_type": self.norm_type, "signed": self.signed}


class LPPool1d(_LPPool):
    rank = 1


class LPPool2d(_LPPool):
    rank = 2


class LPPool3d(_LPPool):
    rank = 3


def reference(
    x: ArrayLike,
    norm_type: float,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    ceil_mode: bool = False,
    signed: bool = True,
) -> Floats:
    """Lp pooling, slowly, in float64, for any real `norm_type` but 0.

    Windows are scaled before the power, so y is finite wherever float64 can hold it.
    """
    if norm_type == 0 or math.isnan(norm_type):
        raise ValueError(f"norm_type must be a number other than 0, got {norm_type}")
    x = np.asarray(x, dtype=np.float64)
    window = (kernel_size, stride, 0, 1, ceil_mode)
    full = math.prod(per_axis(kernel_size, x.ndim - 2))
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, _, _ in each_window(x, *window):
        y[(..., *index)] = _norm(cells if signed else np.abs(cells), float(norm_type), full)
    return y


def _norm(cells: Floats, p: float, full: int) -> Floats:
    if math.isinf(p):
        return np.abs(cells).max(axis=-1) if p > 0 else np.abs(cells).min(axis=-1)
    scale = _scale(np.abs(cells), p)
    powers = _power(cells, scale[..., None], p)
    total = exact_sum(powers, divisor=cells.shape[-1] / full)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return scale * np.power(total, 1 / p)


def _power(cells: Floats, scale: Floats, p: float) -> Floats:
    """Return (cells / scale) ^ p as C's pow has it, the sign read before a small cell can vanish."""
    with np.errstate(divide="ignore", over="ignore"):
        powers = np.power(np.abs(cells / scale), p)
    if p % 2 == 0:
        return powers
    if p % 2 == 1:
        return np.copysign(powers, cells)
    # pow(-inf, p) is real by convention, but torch computes p = 0.5 and -0.5 by a square root, which is not.
    unreal = (cells < 0) & (np.isfinite(cells) | (abs(p) == 0.5))
    return np.where(unreal, np.nan, powers)


def _scale(magnitude: Floats, p: float) -> Floats:
    """Return what to divide a window by, near its dominant cell: the largest for p > 0, else the smallest."""
    usable = np.isfinite(magnitude) & (magnitude > 0)
    if p > 0:
        dominant = np.where(usable, magnitude, 0.0).max(axis=-1)
    else:
        dominant = np.where(usable, magnitude, np.inf).min(axis=-1)
    dominant = np.where((dominant > 0) & np.isfinite(dominant), dominant, 1.0)
    if abs(p) <= 1:  # such a power cannot overflow, and a scaled-away cell would still matter
        return np.ones_like(dominant)
    if abs(p) <= 64:  # exact, so that powers which cancel still do
        return power_of_two(dominant)
    return dominant  # beyond that only a dominant power of exactly 1 stays in range


METHOD = Method(
    (LPPool1d, LPPool2d, LPPool3d),
    summary="The p-norm of every window.",
    paper=Paper(
        "Convolutional Neural Networks Applied to House Numbers Digit Classification",
        "Sermanet, Chintala, LeCun",
        2012,
        "arXiv:1204.3968",
    ),
    reference=reference,
    training="p-norm",
    inference="p-norm",
    operators=(power_average_pool,),
    cases=(
        Case("p2", {"norm_type": 2, "kernel_size": 2}),
        Case("p2-ceil", {"norm_type": 2, "kernel_size": 3, "stride": 2, "ceil_mode": True}, shape=(1, 2, 8, 10)),
        Case("p1-signed", {"norm_type": 1, "kernel_size": 2}),
        Case("p3-signed", {"norm_type": 3, "kernel_size": 3, "stride": 2}),
        Case("p3", {"norm_type": 3, "kernel_size": 3, "stride": 2, "signed": False}),
        Case("p1.5", {"norm_type": 1.5, "kernel_size": 2, "signed": False}),
        Case("p0.5", {"norm_type": 0.5, "kernel_size": 2, "signed": False}, singular_at_zero=True),
        Case("p16-ceil", {"norm_type": 16, "kernel_size": 2, "signed": False, "ceil_mode": True}),
        Case("p-minus-1", {"norm_type": -1, "kernel_size": 2, "signed": False}, singular_at_zero=True),
        Case("p-inf", {"norm_type": math.inf, "kernel_size": 3, "stride": 2, "ceil_mode": True}, shape=(1, 2, 8, 10)),
        Case("p-minus-inf", {"norm_type": -math.inf, "kernel_size": 2}),
        Case("1d", {"norm_type": 2, "kernel_size": 3, "stride": 2}, shape=(2, 3, 11)),
        Case("3d", {"norm_type": 2, "kernel_size": 2, "ceil_mode": True}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "norm_type": (1, 2, 3, 0.5, 1.5, -1, 16, math.inf, -math.inf),
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "ceil_mode": (False, True),
        "signed": (True, False),
    },
    limits=(
        Limit({"norm_type": 0, "kernel_size": 2}, ValueError, "norm_type must be a number other than 0"),
        Limit({"norm_type": math.nan, "kernel_size": 2}, ValueError, "norm_type must be a number other than 0"),
        Limit({"norm_type": 2, "kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit(
            {"norm_type": 2, "kernel_size": 5},
            ValueError,
            "the window does not fit",
            shape=(1, 1, 4, 9),
            file="nothing",
        ),
    ),
    notes=(
        "torch overflows where a power leaves the range (p = 2 above 1.8e19); this layer does not.",
        "The LpPool operator takes |x| and integer p only and does not scale border windows; it is not used.",
    ),
)
