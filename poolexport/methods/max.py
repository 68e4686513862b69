"""Max pooling: the largest cell of every window.

    y = max(x_1, ..., x_m)      over the real cells of the window; padding counts as -inf

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer
from poolexport.reference import Floats, PerAxis, each_window, output_shape
from poolexport_ops._window import Ints
from poolexport_ops.max_pool import max_pool
from poolexport_ops.max_pool_with_indices import max_pool_with_indices


class _MaxPool(WindowLayer):
    """Largest cell of every window; NaN wins over every number.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: cells of -inf added on both sides, at most half the kernel's extent.
        dilation: distance between neighbouring cells of a window.
        return_indices: also return where each maximum was found, as int64 positions inside its (n, c) plane.
        ceil_mode: keep the last, partial window.

    Shape:
        (N, C, *spatial) to (N, C, *output) with
        ``output = floor((n + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1``
        (a ceiling in ceil mode, less a last window that would start beyond the input and its left padding).

    Raises:
        ValueError: an option out of range, an input of another rank, or one smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import MaxPool2d
        >>> MaxPool2d(2)(torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]]))
        tensor([[[[4.]]]])

    Source:
        Ranzato, Huang, Boureau, LeCun, CVPR 2007, section 2; torch.nn.MaxPool2d.
    """

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        dilation: Ints = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.return_indices = return_indices

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        self.require_rank(x)
        pool = max_pool_with_indices if self.return_indices else max_pool
        return pool(x, **self.window.onnx())

    def extra_options(self) -> dict[str, Any]:
        return {"return_indices": True} if self.return_indices else {}


class MaxPool1d(_MaxPool):
    rank = 1


class MaxPool2d(_MaxPool):
    rank = 2


class MaxPool3d(_MaxPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Floats | tuple[Floats, NDArray[np.int64]]:
    """Max pooling, slowly, in float64; with `return_indices` also where each maximum was found.

    NaN wins over every number, and a window of nothing but -inf is -inf. An index is flat inside its (n, c)
    plane and names the first maximum in row-major order, or the last NaN; -1 where a dilated window has no
    real cell (torch then returns the index of another cell, or of none).
    """
    x = np.asarray(x, dtype=np.float64)
    window = (kernel_size, stride, padding, dilation, ceil_mode)
    values = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    indices = np.full(values.shape, -1, dtype=np.int64)
    for index, cells, _, positions in each_window(x, *window):
        values[(..., *index)] = cells.max(axis=-1, initial=-np.inf)
        if positions.size:
            indices[(..., *index)] = positions[_winner(cells)]
    return (values, indices) if return_indices else values


def _winner(cells: Floats) -> NDArray[np.int64]:
    nan = np.isnan(cells)
    last_nan = cells.shape[-1] - 1 - nan[..., ::-1].argmax(axis=-1)
    return np.where(nan.any(axis=-1), last_nan, cells.argmax(axis=-1))


METHOD = Method(
    (MaxPool1d, MaxPool2d, MaxPool3d),
    summary="The largest cell of every window.",
    paper=Paper(
        "Unsupervised Learning of Invariant Feature Hierarchies with Applications to Object Recognition",
        "Ranzato, Huang, Boureau, LeCun",
        2007,
        "CVPR 2007",
    ),
    reference=reference,
    training="largest cell",
    inference="largest cell",
    operators=(max_pool, max_pool_with_indices),
    cases=(
        Case("2x2", {"kernel_size": 2}),
        Case("overlapping", {"kernel_size": 3, "stride": 2, "padding": 1}),
        Case("ceil", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, shape=(1, 2, 8, 10)),
        Case("off-edge-ceil", {"kernel_size": 2, "stride": 3, "ceil_mode": True}, shape=(1, 2, 7, 8)),
        Case("dilated", {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
        Case("indices", {"kernel_size": 3, "stride": 2, "padding": 1, "return_indices": True}),
        Case("indices-dilated-ceil", {"kernel_size": 2, "dilation": 2, "return_indices": True, "ceil_mode": True}),
        Case("1d", {"kernel_size": 3, "stride": 2}, shape=(2, 3, 11)),
        Case("3d", {"kernel_size": 2, "ceil_mode": True}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, True),
        "dilation": (1, 1, 2, 3),
        "return_indices": (False, True),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "stride": -1}, ValueError, "stride must be a positive int"),
        Limit({"kernel_size": 2, "padding": -1}, ValueError, "padding must be a non-negative int"),
        Limit({"kernel_size": 2, "padding": 2}, ValueError, "at most half of the kernel's extent"),
        Limit({"kernel_size": (2, 2, 2)}, ValueError, "a tuple of 2"),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
        Limit({"kernel_size": 2}, ValueError, "expects an input of shape", shape=(3, 9, 9)),
    ),
    notes=(
        "The standard MaxPool of onnxruntime drops NaN and turns a padded window of -inf into -3.4e38; the exported "
        "form does neither.",
    ),
)
