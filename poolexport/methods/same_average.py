"""Average pooling with "same" padding, TensorFlow's rule: one window per stride, however long the input is.

    o = ceil(n / s), total = max((o - 1) s + k - n, 0), begin = total // 2      along every axis
    y_i = sum of x_j / divisor      over the real cells j of i s - begin, ..., i s - begin + k - 1

The divisor is the number of real cells, or of all cells of a window. Training and inference are the same; there is
nothing to learn.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer
from poolexport.reference import Floats, PerAxis, exact_sum, per_axis
from poolexport_ops._window import Ints
from poolexport_ops.same_average_pool import same_average_pool


class _SameAvgPool(WindowLayer):
    """Mean of every window; the input is padded so that its length divided by the stride, rounded up, remains.

    An odd number of padded cells puts the extra one at the end.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        count_include_pad: False divides by the number of real cells (TensorFlow); True by that of all (timm).

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = ceil(n / stride)``.

    Raises:
        ValueError: an option out of range, or an input of another rank or without cells.

    Example:
        >>> import torch
        >>> from poolexport.nn import SameAvgPool1d
        >>> SameAvgPool1d(3, stride=2)(torch.tensor([[[4.0, 1.0, 1.0, 3.0]]]))
        tensor([[[2., 2.]]])

    Source:
        tf.nn.avg_pool with padding="SAME"; timm AvgPool2dSame.
    """

    def __init__(self, kernel_size: Ints, stride: Ints | None = None, count_include_pad: bool = False) -> None:
        super().__init__(kernel_size, stride)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        return same_average_pool(
            x,
            kernel_shape=list(self.window.kernel_shape),
            strides=list(self.window.strides),
            count_include_pad=int(self.count_include_pad),
        )

    def extra_options(self) -> dict[str, Any]:
        return {"count_include_pad": self.count_include_pad}


class SameAvgPool1d(_SameAvgPool):
    rank = 1


class SameAvgPool2d(_SameAvgPool):
    rank = 2


def reference(
    x: ArrayLike, kernel_size: PerAxis, stride: PerAxis | None = None, count_include_pad: bool = False
) -> Floats:
    """Average pooling with "same" padding, window by window, in float64."""
    x = np.asarray(x, dtype=np.float64)
    spatial = x.shape[2:]
    k = per_axis(kernel_size, len(spatial))
    s = k if stride is None else per_axis(stride, len(spatial))
    axes = [_real_places(*lengths) for lengths in zip(spatial, k, s, strict=True)]
    y = np.empty(x.shape[:2] + tuple(len(windows) for windows in axes))
    for index in np.ndindex(y.shape[2:]):
        places = itertools.product(*(windows[i] for windows, i in zip(axes, index, strict=True)))
        cells = np.stack([x[(..., *place)] for place in places], axis=-1)
        y[(..., *index)] = exact_sum(cells, math.prod(k) if count_include_pad else cells.shape[-1])
    return y


def _real_places(n: int, k: int, s: int) -> list[range]:
    """Return, for every window along an axis of length n, which of its cells are inside the input."""
    windows = -(-n // s)
    before = max((windows - 1) * s + k - n, 0) // 2
    starts = [i * s - before for i in range(windows)]
    return [range(max(start, 0), min(start + k, n)) for start in starts]


METHOD = Method(
    (SameAvgPool1d, SameAvgPool2d),
    summary='The mean of every window, with "same" padding that follows the input.',
    paper=Paper(
        "TensorFlow: Large-Scale Machine Learning on Heterogeneous Distributed Systems",
        "Abadi et al.",
        2016,
        "arXiv:1603.04467",
    ),
    reference=reference,
    training="mean",
    inference="mean",
    operators=(same_average_pool,),
    cases=(
        Case("2x2", {"kernel_size": 2}),
        Case("3x3", {"kernel_size": 3, "stride": 2}),
        Case("even", {"kernel_size": 3, "stride": 2}, shape=(1, 2, 8, 10)),
        Case("timm", {"kernel_size": 3, "stride": 2, "count_include_pad": True}),
        Case("timm-even", {"kernel_size": 3, "stride": 2, "count_include_pad": True}, shape=(1, 2, 8, 10)),
        Case("oblong", {"kernel_size": (2, 5), "stride": (1, 3)}),
        Case("stride-above-kernel", {"kernel_size": 2, "stride": (3, 4), "count_include_pad": True}),
        Case("kernel-above-input", {"kernel_size": 7, "stride": 2}, shape=(1, 2, 3, 5)),
        Case("1d", {"kernel_size": 3, "stride": 2}, shape=(2, 3, 11)),
        Case("1d-even", {"kernel_size": 4, "stride": 3, "count_include_pad": True}, shape=(2, 3, 10)),
    ),
    space={
        "kernel_size": (1, 2, 3, 5, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "count_include_pad": (False, True),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "stride": 0}, ValueError, "stride must be a positive int"),
        Limit({"kernel_size": 2}, ValueError, "there is nothing to pool", shape=(1, 1, 0, 4), file="numbers"),
        Limit({"kernel_size": 2}, ValueError, "expects an input of shape", shape=(1, 3, 4)),
    ),
    notes=(
        "TensorFlow leaves padded cells out of the divisor; timm's AvgPool2dSame counts them whatever its own "
        "count_include_pad says.",
    ),
)
