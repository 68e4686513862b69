"""Stochastic pooling: in training, draw one cell of every window; in inference, average by probability.

p_i = a_i / (a_1 + ... + a_m)      over each window, for non-negative a
training   y = a_i with i ~ p
inference  y = p_1 a_1 + ... + p_m a_m, and 0 where the window is all zero
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer, require_choice, widened
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape, power_of_two
from poolexport_ops._window import Ints
from poolexport_ops.weighted_average_pool import weighted_average_pool


class _StochasticPool(WindowLayer):
    """One cell of every window, drawn by its share; in ``eval()`` the expectation of that draw.

    Every window of every channel and sample is drawn by itself, from torch's global generator.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        ceil_mode: keep the last, partial window, as the Caffe and pylearn2 layers do.
        negative: "clamp" raises negative cells to 0 first; "raw" puts them into the inference formula with their
            sign, as Caffe and pylearn2 do, where a sum near 0 makes the answer large. In training a negative cell is
            never drawn unless the window has no positive one.
        inference: "expectation", the probability-weighted average of the paper.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n - kernel_size) / stride) + 1``
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range, an input of another rank, or one smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import StochasticPool2d
        >>> StochasticPool2d(2).eval()(torch.tensor([[[[1.0, 0.0], [0.0, 3.0]]]]))
        tensor([[[[2.5000]]]])

    Source:
        Zeiler, Fergus, 2013, sections 3.1 (training) and 3.2 (inference); the Caffe and pylearn2 layers.
    """

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        ceil_mode: bool = False,
        negative: str = "clamp",
        inference: str = "expectation",
    ) -> None:
        super().__init__(kernel_size, stride, ceil_mode=ceil_mode)
        require_choice("negative", negative, ("clamp", "raw"))
        require_choice("inference", inference, ("expectation",))
        self.negative = negative
        self.inference = inference

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        activations = x.relu() if self.negative == "clamp" else x
        if self.training:
            return self._draw(activations)
        # Weights of both signs may cancel, which magnifies the rounding of their sum.
        wide = activations.double() if self.negative == "raw" else activations
        return weighted_average_pool(wide, wide, **self.window.onnx()).to(x.dtype)

    def _draw(self, activations: Tensor) -> Tensor:
        self.window.require_fit(activations.shape[2:])
        cells = self.window.cells(activations, 0.0)
        rates = widened(cells).clamp(min=0)
        largest = rates.amax(-1, keepdim=True)
        rates = rates / largest.masked_fill(largest == 0, 1.0)
        # The first of several exponential clocks to ring is i with probability rate_i / sum(rates).
        clocks = torch.empty_like(rates).exponential_().clamp_(min=torch.finfo(rates.dtype).tiny)
        drawn = (rates / clocks).argmax(-1, keepdim=True)
        return cells.gather(-1, drawn).squeeze(-1).masked_fill(cells.isnan().any(-1), torch.nan)

    def extra_options(self) -> dict[str, Any]:
        return {"negative": self.negative, "inference": self.inference}


class StochasticPool1d(_StochasticPool):
    rank = 1


class StochasticPool2d(_StochasticPool):
    rank = 2


class StochasticPool3d(_StochasticPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    ceil_mode: bool = False,
    negative: str = "clamp",
    inference: str = "expectation",
) -> Floats:
    """The inference rule of stochastic pooling, slowly, in float64; `inference="max"` takes the largest cell.

    Negative cells are raised to 0 first, or with `negative="raw"` enter the bare formula with their sign. An
    infinite cell gives NaN, as the formula does.
    """
    if negative not in ("clamp", "raw") or inference not in ("expectation", "max"):
        raise ValueError(f"unknown option: negative={negative!r}, inference={inference!r}")
    x = np.asarray(x, dtype=np.float64)
    a = np.maximum(x, 0.0) if negative == "clamp" else x
    window = (kernel_size, stride, 0, 1, ceil_mode)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, _, _ in each_window(a, *window):
        y[(..., *index)] = cells.max(axis=-1) if inference == "max" else _expectation(cells)
    return y


def _expectation(cells: Floats) -> Floats:
    # Scaled to near 1, the squares stay in range; the test for 0 needs the sum before scaling can lose it.
    scale = power_of_two(np.abs(cells).max(axis=-1))
    squares = exact_sum((cells / scale[..., None]) ** 2)
    weights = exact_sum(cells, divisor=scale)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.where(exact_sum(cells) == 0, 0.0, scale * (squares / weights))


METHOD = Method(
    (StochasticPool1d, StochasticPool2d, StochasticPool3d),
    summary="One cell of every window, drawn by its share in training and averaged by it in inference.",
    paper=Paper(
        "Stochastic Pooling for Regularization of Deep Convolutional Neural Networks",
        "Zeiler, Fergus",
        2013,
        "arXiv:1301.3557",
    ),
    reference=reference,
    training="one cell per window, drawn by its share",
    inference="probability-weighted average",
    operators=(weighted_average_pool,),
    random=True,
    cases=(
        Case("2x2", {"kernel_size": 2}),
        Case("paper", {"kernel_size": 3, "stride": 2}),
        Case("caffe", {"kernel_size": 3, "stride": 2, "ceil_mode": True}, shape=(1, 2, 8, 10)),
        Case(
            "raw",
            {"kernel_size": 2, "negative": "raw"},
            slack=1e3,
            why="weights of both signs may cancel, which magnifies their rounding",
        ),
        Case("overlapping", {"kernel_size": (3, 2), "stride": 1}, shape=(1, 2, 9, 11)),
        Case("1d", {"kernel_size": 3, "stride": 2}, shape=(2, 3, 11)),
        Case("3d", {"kernel_size": 2, "ceil_mode": True}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "ceil_mode": (False, True),
        "negative": ("clamp", "raw"),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "negative": "abs"}, ValueError, "negative must be one of"),
        Limit({"kernel_size": 2, "inference": "sample"}, ValueError, "inference must be one of"),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
    ),
    notes=(
        "Where negative='raw' makes the weights of a window cancel to 0, the answer is 0; Caffe divides by the "
        "smallest normal float instead.",
    ),
)
