"""Adaptive average pooling: the mean of every bin, for an output of a given size, whatever the input's.

y_i = mean of the cells floor(i n / o) ... ceil((i + 1) n / o) - 1      along every axis of length n with o bins

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops._regions import Sizes, bins_per_axis, require_cells
from poolexport_ops.adaptive_average_pool import adaptive_average_pool


class _AdaptiveAvgPool(Layer):
    """Mean of every bin; the bins of an axis cover it evenly, and share cells where it does not divide evenly.

    Args:
        output_size: bins, an int or one per spatial axis; None keeps the length of an axis.

    Shape:
        (N, C, *spatial) to (N, C, *output_size), with the input's length where that is None.

    Raises:
        ValueError: an output size that is not a positive int or None, an input of another rank, or one without cells.

    Example:
        >>> import torch
        >>> from poolexport.nn import AdaptiveAvgPool2d
        >>> AdaptiveAvgPool2d((1, 2))(torch.tensor([[[[1.0, 2.0, 6.0]]]]))
        tensor([[[[1.5000, 4.0000]]]])

    Source:
        torch.nn.AdaptiveAvgPool2d; the bins are those of He, Zhang, Ren, Sun, ECCV 2014, appendix ("Implementation of
        Pooling Bins").
    """

    rank: ClassVar[int]

    def __init__(self, output_size: Sizes) -> None:
        super().__init__()
        self.output_size = output_size
        self.bins = bins_per_axis(output_size, self.rank)

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        require_cells(x, type(self).__name__)
        return adaptive_average_pool(x, output_size=list(self.bins))

    def extra_repr(self) -> str:
        return f"output_size={self.output_size!r}"


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    rank = 1


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    rank = 2


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    rank = 3


def reference(x: ArrayLike, output_size: Sizes) -> Floats:
    """Adaptive average pooling, slowly, in float64: every bin is cut out by itself and added up exactly.

    Infinities and NaN give what addition gives, in the bins they lie in.
    """
    x = np.asarray(x, dtype=np.float64)
    lengths = x.shape[2:]
    wanted = output_size if isinstance(output_size, Sequence) else [output_size] * len(lengths)
    output = [n if o is None else o for n, o in zip(lengths, wanted, strict=True)]
    y = np.empty((*x.shape[:2], *output))
    for index in np.ndindex(*output):
        cells = x
        for axis, (i, n, o) in enumerate(zip(index, lengths, output, strict=True), start=2):
            cells = np.take(cells, range(math.floor(Fraction(i * n, o)), math.ceil(Fraction((i + 1) * n, o))), axis)
        count = math.prod(cells.shape[2:])
        y[(..., *index)] = exact_sum(cells.reshape(*x.shape[:2], count), count)
    return y


METHOD = Method(
    (AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d),
    summary="The mean of every bin, for an output of a given size.",
    paper=Paper(
        "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition",
        "He, Zhang, Ren, Sun",
        2014,
        "arXiv:1406.4729",
    ),
    reference=reference,
    training="mean of every bin",
    inference="mean of every bin",
    operators=(adaptive_average_pool,),
    cases=(
        Case("3x3", {"output_size": 3}),
        Case("global", {"output_size": 1}),
        Case("divides", {"output_size": (3, 4)}, shape=(1, 2, 6, 8)),
        Case("larger-than-input", {"output_size": (12, 5)}, shape=(1, 2, 5, 7)),
        Case("keep-height", {"output_size": (None, 4)}),
        Case("keep-width", {"output_size": (1, None)}, shape=(2, 3, 7, 5)),
        Case("keep-all", {"output_size": None}),
        Case("1x1", {"output_size": 2}, shape=(2, 3, 1, 1)),
        Case("1d", {"output_size": 4}, shape=(2, 3, 11)),
        Case("1d-long", {"output_size": 3}, shape=(1, 2, 1000)),
        Case("3d", {"output_size": (2, 3, 4)}, shape=(1, 2, 5, 6, 7)),
        Case("3d-keep", {"output_size": (None, 1, 5)}, shape=(1, 2, 3, 4, 4)),
    ),
    space={
        "output_size": (
            1,
            2,
            3,
            4,
            5,
            7,
            12,
            None,
            (5,),
            (2, 3),
            (None, 2),
            (4, 1),
            (1, 2, 3),
            (2, None, 5),
            (None, 1, 1),
        )
    },
    limits=(
        Limit({"output_size": 0}, ValueError, "output_size must be a positive int"),
        Limit({"output_size": (2, -1)}, ValueError, "output_size must be a positive int"),
        Limit({"output_size": (2, 2, 2)}, ValueError, "a tuple of 2"),
        Limit(
            {"output_size": 2},
            ValueError,
            "there is nothing to pool",
            shape=(1, 3, 0, 4),
            file="numbers",
        ),
        Limit({"output_size": 2}, ValueError, "expects an input of shape", shape=(3, 9, 9)),
    ),
    notes=(
        "torch.onnx.export freezes the bins at the traced size; the exported form computes them from the input.",
        "The windows of ceil(n / o) cells every floor(n / o) that the same paper trains with are other bins: they can "
        "leave out the last cells.",
    ),
)
