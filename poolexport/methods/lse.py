"""LSE pooling, log-sum-exp: between the average (r to 0) and the maximum (r to infinity).

    y = log(mean(exp(r x_i))) / r      over all locations of one channel, or over every window

``r`` is fixed or learned. Training and inference are the same.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_positive, widened
from poolexport.reference import Floats, PerAxis, each_window, output_shape
from poolexport_ops import Window, require_rank
from poolexport_ops._window import Ints
from poolexport_ops.global_log_mean_exp_pool import global_log_mean_exp_pool
from poolexport_ops.log_mean_exp_pool import log_mean_exp_pool


class _LSEPool(Layer):
    """Log-mean-exp of every channel, or of every window.

    Exponentials are taken of distances from the maximum or from the mean, so none overflows and no digits are lost.

    Args:
        sharpness: r, above 0: fixed, or where training starts.
        kernel_size: cells per window, an int or one per spatial axis; None takes the whole plane, as the paper does.
        stride: cells between windows; the kernel size by default.
        padding: cells added on both sides, at most half the kernel; they do not count.
        ceil_mode: keep the last, partial window; the mean is over its real cells.
        learned: hold r in a parameter.
        keepdim: keep the spatial axes, with length 1; windows always keep them.

    Parameters:
        r: the sharpness where it is learned, a scalar; it has to stay above 0.

    Shape:
        (N, C, *spatial) to (N, C, 1, ...), or to (N, C) without ``keepdim``. With windows to (N, C, *output),
        ``output = floor((n + 2 padding - kernel_size) / stride) + 1`` (in ceil mode a
        ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range or without effect, a learned r that is not above 0, an input of another
            rank, or one smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import LSEPool2d
        >>> LSEPool2d(sharpness=1)(torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]])).item()
        1.4337...

    Source:
        Pinheiro, Collobert, CVPR 2015, eq. 3; timm LsePlus2d, whose learned state loads as it is.
    """

    rank: ClassVar[int]

    def __init__(
        self,
        sharpness: float = 10.0,
        kernel_size: Ints | None = None,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        learned: bool = True,
        keepdim: bool = True,
    ) -> None:
        super().__init__()
        require_positive("sharpness", sharpness)
        if kernel_size is None and (stride is not None or padding != 0 or ceil_mode):
            raise ValueError("stride, padding and ceil_mode need a kernel_size; without one the whole plane is pooled")
        if kernel_size is not None and not keepdim:
            raise ValueError("keepdim=False is for whole planes; it cannot go with a kernel_size")
        self.sharpness = float(sharpness)
        self.window = (
            None
            if kernel_size is None
            else Window.from_torch(self.rank, kernel_size, stride, padding, ceil_mode=ceil_mode)
        )
        self.keepdim = keepdim
        self.r = nn.Parameter(torch.tensor(self.sharpness)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        wide = widened(x)
        r = self._sharpness(wide)
        if self.window is None:
            axes = list(range(2, 2 + self.rank))
            return global_log_mean_exp_pool(wide, r, axes=axes, keepdims=int(self.keepdim)).to(x.dtype)
        return log_mean_exp_pool(wide, r, **self.window.onnx()).to(x.dtype)

    def _sharpness(self, x: Tensor) -> Tensor:
        """r as a vector of one."""
        if self.r is None:
            return x.new_tensor([self.sharpness])  # the exporter rounds a plain number to float32
        if not torch.compiler.is_compiling() and not bool(self.r > 0):
            raise ValueError(f"a learned r must stay above 0, got {self.r.item()}")
        return widened(self.r).reshape(1)

    def extra_repr(self) -> str:
        kind = "learned" if self.r is not None else "fixed"
        where = f"window={self.window}" if self.window else f"keepdim={self.keepdim}"
        return f"sharpness={self.sharpness} ({kind}), {where}"


class LSEPool1d(_LSEPool):
    rank = 1


class LSEPool2d(_LSEPool):
    rank = 2


class LSEPool3d(_LSEPool):
    rank = 3


def reference(
    x: ArrayLike,
    sharpness: float = 10.0,
    kernel_size: PerAxis | None = None,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    learned: bool = True,
    keepdim: bool = True,
    r: ArrayLike | None = None,
) -> Floats:
    """LSE pooling, slowly, as it is printed, in decimal numbers of 60 digits; None for `r` is `sharpness`.

    NaN gives NaN, +inf gives +inf, and a plane or window of nothing but -inf gives -inf.
    """
    x = np.asarray(x, dtype=np.float64)
    sharp = float(sharpness if r is None else np.asarray(r, dtype=np.float64))
    if kernel_size is None:
        y = _log_mean_exp(x.reshape(*x.shape[:2], math.prod(x.shape[2:])), sharp)
        return y.reshape(*y.shape, *(1,) * (x.ndim - 2)) if keepdim else y
    window = (kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, _, _ in each_window(x, *window):
        y[(..., *index)] = _log_mean_exp(cells, sharp)
    return y


def _log_mean_exp(cells: Floats, sharp: float) -> Floats:
    """Return the formula over the last axis."""
    rows = cells.reshape(math.prod(cells.shape[:-1]), cells.shape[-1]).tolist()
    return np.array([_printed_formula(row, sharp) for row in rows]).reshape(cells.shape[:-1])


def _printed_formula(row: list[float], sharp: float) -> float:
    largest = math.nan if any(map(math.isnan, row)) else max(row)
    if not math.isfinite(largest):
        return largest
    with localcontext(Context(prec=60)):
        factor = Decimal(largest)  # e^(r factor) is taken out of the sum: exponents of 1e21 are too much even here
        terms = [(Decimal(sharp) * (Decimal(value) - factor)).exp() for value in row]
        return float(factor + (sum(terms, Decimal(0)) / len(row)).ln() / Decimal(sharp))


METHOD = Method(
    (LSEPool1d, LSEPool2d, LSEPool3d),
    summary="The log-sum-exp of every plane: a smooth maximum with a learned sharpness.",
    paper=Paper(
        "From Image-level to Pixel-level Labeling with Convolutional Networks",
        "Pinheiro, Collobert",
        2015,
        "arXiv:1411.6228",
    ),
    reference=reference,
    training="log-mean-exp with a learned or fixed sharpness",
    inference="the same log-mean-exp",
    operators=(log_mean_exp_pool, global_log_mean_exp_pool),
    cases=(
        Case("plane", {}),
        Case("trained", {"keepdim": False}, state={"r": 3.7}),
        Case("fixed", {"sharpness": 5.3, "learned": False}),
        Case("nearly-average", {"sharpness": 0.3, "learned": False}, shape=(1, 2, 8, 10)),
        Case("nearly-maximum", {"sharpness": 200.0}),
        Case("windows", {"kernel_size": 3, "stride": 2}, state={"r": 1.9}),
        Case("padded-windows", {"sharpness": 4, "kernel_size": 3, "stride": 2, "padding": 1}),
        Case("ceil-windows", {"kernel_size": 2, "ceil_mode": True, "learned": False}, shape=(1, 2, 7, 10)),
        Case("1d", {}, shape=(2, 3, 11), state={"r": 2.1}),
        Case("3d", {"kernel_size": 2}, shape=(1, 2, 5, 6, 7)),
        Case("3d-plane", {}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "sharpness": (0.3, 1, 5.3, 10.0),
        "kernel_size": (None, 1, 2, 3, (3, 2, 1)),
        "stride": (None, None, 1, 2, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, True),
        "learned": (True, False),
        "keepdim": (True, True, False),
    },
    limits=(
        Limit({"sharpness": 0}, ValueError, "sharpness must be a finite number above 0"),
        Limit({"sharpness": math.inf}, ValueError, "sharpness must be a finite number above 0"),
        Limit({"stride": 2}, ValueError, "need a kernel_size"),
        Limit({"kernel_size": 2, "keepdim": False}, ValueError, "keepdim=False is for whole planes"),
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
        Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
    ),
    notes=(
        "The paper pools whole planes with a fixed r; a learned one and windows came later.",
        "Implementations that leave out the mean's divisor differ by log(M) / r.",
    ),
)
