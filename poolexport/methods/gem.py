"""GeM pooling, the generalized mean: between the average (p = 1) and the maximum (p to infinity).

    c_i = max(x_i, eps)
    y = (mean(c_i^p))^(1/p)      over all locations of one channel, or over every window

``p`` is fixed or learned, one number for the layer or one per channel. Training and inference are the same.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_positive
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport_ops import Window, require_rank
from poolexport_ops._window import Ints
from poolexport_ops.generalized_mean_pool import generalized_mean_pool
from poolexport_ops.global_average_pool import global_average_pool
from poolexport_ops.global_max_pool import global_max_pool


class _GeMPool(Layer):
    """Generalized mean of every channel, or of every window.

    Powers are taken of ``c / max(c)``, so neither large nor small activations leave the range of the type.

    Args:
        power: the order p, above 0: fixed, or where training starts.
        kernel_size: cells per window, an int or one per spatial axis; None takes the whole plane, as the paper does.
        stride: cells between windows; the kernel size by default.
        padding: cells added on both sides, at most half the kernel; they do not count.
        ceil_mode: keep the last, partial window; the mean is over its real cells.
        learned: hold p in a parameter.
        channels: learn one p per channel, for this many; None learns one for the layer.
        eps: lower bound on the activations, above 0.
        keepdim: keep the spatial axes, with length 1; windows always keep them.

    Parameters:
        p: the order where it is learned, shape (1,) or (channels,); it has to stay above 0.

    Shape:
        (N, C, *spatial) to (N, C, 1, ...), or to (N, C) without ``keepdim``. With windows to (N, C, *output),
        ``output = floor((n + 2 padding - kernel_size) / stride) + 1`` (in ceil mode a
        ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range or without effect, a learned p that is not above 0, an input of another
            rank, of another number of channels, or smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import GeMPool2d
        >>> GeMPool2d(power=2, learned=False)(torch.tensor([[[[1.0, 5.0], [5.0, 7.0]]]]))
        tensor([[[[5.]]]])

    Source:
        Radenovic, Tolias, Chum, TPAMI 2018, section 3.2; code filipradenovic/cnnimageretrieval-pytorch, classes GeM
        (one p) and GeMmp (``channels``); their state dicts load as they are.
    """

    rank: ClassVar[int]

    def __init__(
        self,
        power: float = 3.0,
        kernel_size: Ints | None = None,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        learned: bool = True,
        channels: int | None = None,
        eps: float = 1e-6,
        keepdim: bool = True,
    ) -> None:
        super().__init__()
        require_positive("power", power)
        require_positive("eps", eps)
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be a positive int or None, got {channels!r}")
        if channels is not None and not learned:
            raise ValueError("channels is the number of learned orders; it needs learned=True")
        if kernel_size is None and (stride is not None or padding != 0 or ceil_mode):
            raise ValueError("stride, padding and ceil_mode need a kernel_size; without one the whole plane is pooled")
        if kernel_size is not None and not keepdim:
            raise ValueError("keepdim=False is for whole planes; it cannot go with a kernel_size")
        self.power = float(power)
        self.window = (
            None
            if kernel_size is None
            else Window.from_torch(self.rank, kernel_size, stride, padding, ceil_mode=ceil_mode)
        )
        self.channels = channels
        self.eps = eps
        self.keepdim = keepdim
        self.p = nn.Parameter(torch.full((channels or 1,), self.power)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        # In float64: the root of a low order magnifies the rounding of the mean by its reciprocal.
        wide = x.double()
        order = self._order(wide)
        # Tensors, because the exporter rounds Python numbers to float32.
        cells = torch.maximum(wide, wide.new_tensor(self.eps))
        if self.window is None:
            y = self._of_planes(cells, order)
        else:
            y = generalized_mean_pool(cells, order, **self.window.onnx())
        return y.to(x.dtype)

    def _order(self, x: Tensor) -> Tensor:
        """p as a vector."""
        if self.p is None:
            return x.new_tensor([self.power])
        if self.channels is not None and x.shape[1] != self.channels:
            raise ValueError(f"the layer has {self.channels} channels, the input has {x.shape[1]}")
        if not torch.compiler.is_compiling() and not bool((self.p > 0).all()):
            raise ValueError(f"a learned p must stay above 0, got {self.p.detach().tolist()}")
        return self.p.double()

    def _of_planes(self, cells: Tensor, order: Tensor) -> Tensor:
        axes = list(range(2, 2 + self.rank))
        order = order.reshape(1, -1, *(1,) * self.rank)
        largest = global_max_pool(cells, axes=axes).detach()
        scale = torch.where(largest.isinf(), 1.0, largest)
        mean = global_average_pool(torch.pow(cells / scale, order), axes=axes)
        y = scale * torch.pow(mean, 1 / order)
        return y if self.keepdim else y.flatten(1)

    def extra_repr(self) -> str:
        kind = "learned" if self.p is not None else "fixed"
        where = f", window={self.window}" if self.window else f", keepdim={self.keepdim}"
        return f"power={self.power} ({kind}), eps={self.eps}{where}"


class GeMPool1d(_GeMPool):
    rank = 1


class GeMPool2d(_GeMPool):
    rank = 2


class GeMPool3d(_GeMPool):
    rank = 3


def reference(
    x: ArrayLike,
    power: float = 3.0,
    kernel_size: PerAxis | None = None,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    learned: bool = True,
    channels: int | None = None,
    eps: float = 1e-6,
    keepdim: bool = True,
    p: ArrayLike | None = None,
) -> Floats:
    """GeM pooling, slowly, in float64, by way of logarithms; None for `p` is its start, `power`.

    NaN gives NaN and +inf gives +inf; -inf is a cell like any other below `eps`.
    """
    x = np.asarray(x, dtype=np.float64)
    order = np.full(channels or 1, float(power)) if p is None else np.asarray(p, dtype=np.float64).reshape(-1)
    logs = np.log(np.maximum(x, eps))
    if kernel_size is None:
        y = _log_mean(logs.reshape(*x.shape[:2], math.prod(x.shape[2:])), order)
        y = y.reshape(*y.shape, *(1,) * (x.ndim - 2)) if keepdim else y
    else:
        window = (kernel_size, stride, padding, 1, ceil_mode)
        y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
        for index, cells, _, _ in each_window(logs, *window):
            y[(..., *index)] = _log_mean(cells, order)
    return np.exp(y)


def _log_mean(logs: Floats, order: Floats) -> Floats:
    """Return the logarithm of the power mean over the last axis, given the logarithms of the cells."""
    exponents = order[:, None] * logs
    top = exponents.max(axis=-1, keepdims=True)
    level = np.where(np.isposinf(top), 0.0, top)  # +inf stays +inf; inf - inf would be NaN
    with np.errstate(over="ignore"):
        mean = exact_sum(np.exp(exponents - level), logs.shape[-1])
    return (level[..., 0] + np.log(mean)) / order


METHOD = Method(
    (GeMPool1d, GeMPool2d, GeMPool3d),
    summary="The generalized mean: the p-th root of the mean of p-th powers, with a learned p.",
    paper=Paper(
        "Fine-tuning CNN Image Retrieval with No Human Annotation", "Radenovic, Tolias, Chum", 2018, "arXiv:1711.02512"
    ),
    reference=reference,
    training="generalized mean with a learned or fixed p",
    inference="the same mean",
    operators=(generalized_mean_pool, global_average_pool, global_max_pool),
    cases=(
        Case("plane", {}),
        Case("trained", {"keepdim": False}, state={"p": [2.71]}),
        Case("fixed", {"power": 2.2, "learned": False}),
        Case("average", {"power": 1, "learned": False}),
        Case("near-maximum", {"power": 30.0, "learned": False}),
        Case("per-channel", {"channels": 3}, state={"p": [0.5, 3.3, 6.0]}),
        Case("eps", {"eps": 0.25}),
        Case("windows", {"kernel_size": 3, "stride": 2}, state={"p": [3.4]}),
        Case("padded-windows", {"kernel_size": 3, "stride": 2, "padding": 1, "channels": 3}, state={"p": [1.5, 3, 9]}),
        Case("ceil-windows", {"power": 4, "kernel_size": 2, "ceil_mode": True, "learned": False}, shape=(1, 2, 7, 10)),
        Case("1d", {}, shape=(2, 3, 11), state={"p": [2.5]}),
        Case("3d", {"kernel_size": 2}, shape=(1, 2, 5, 6, 7)),
        Case("3d-plane", {}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "power": (1, 2.2, 3.0, 6.5),
        "kernel_size": (None, 1, 2, 3, (3, 2, 1)),
        "stride": (None, None, 1, 2, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, True),
        "learned": (True, False),
        "channels": (None, 3),
        "eps": (1e-6, 0.01),
        "keepdim": (True, True, False),
    },
    limits=(
        Limit({"power": 0}, ValueError, "power must be a finite number above 0"),
        Limit({"power": math.inf}, ValueError, "power must be a finite number above 0"),
        Limit({"eps": 0}, ValueError, "eps must be a finite number above 0"),
        Limit({"channels": 0}, ValueError, "channels must be a positive int"),
        Limit({"channels": 3, "learned": False}, ValueError, "it needs learned=True"),
        Limit({"stride": 2}, ValueError, "need a kernel_size"),
        Limit({"kernel_size": 2, "keepdim": False}, ValueError, "keepdim=False is for whole planes"),
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"channels": 2}, ValueError, "the layer has 2 channels", shape=(1, 3, 4, 4)),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
        Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
    ),
    notes=(
        "The paper pools whole planes; windows are this library's addition.",
        "The official code overflows in float32 above about 7e12 (p = 3); this layer does not.",
    ),
)
