"""Global average pooling: the mean of every plane.

    y = (x_1 + ... + x_M) / M      over all M locations of one channel

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops.global_average_pool import global_average_pool


class _GlobalAvgPool(Layer):
    """Mean over all locations of every channel.

    Args:
        keepdim: keep the spatial axes, with length 1.

    Shape:
        (N, C, *spatial) to (N, C, 1, ...), or to (N, C) without ``keepdim``.

    Raises:
        ValueError: an input of another rank.

    Example:
        >>> import torch
        >>> from poolexport.nn import GlobalAvgPool2d
        >>> GlobalAvgPool2d(keepdim=False)(torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]]))
        tensor([[2.5000]])

    Source:
        Lin, Chen, Yan, 2013, section 3.2.
    """

    rank: ClassVar[int]

    def __init__(self, keepdim: bool = True) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        return global_average_pool(x, axes=list(range(2, x.dim())), keepdims=int(self.keepdim))

    def extra_repr(self) -> str:
        return f"keepdim={self.keepdim}"


class GlobalAvgPool1d(_GlobalAvgPool):
    rank = 1


class GlobalAvgPool2d(_GlobalAvgPool):
    rank = 2


class GlobalAvgPool3d(_GlobalAvgPool):
    rank = 3


def reference(x: ArrayLike, keepdim: bool = True) -> Floats:
    """Global average pooling, slowly, in float64: (N, C, 1, ...), or (N, C) without `keepdim`.

    The mean of a plane without locations is NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    locations = math.prod(x.shape[2:])
    planes = x.reshape(*x.shape[:2], locations)
    y = exact_sum(planes, locations) if locations else np.full(x.shape[:2], np.nan)
    return y.reshape(*x.shape[:2], *(1,) * (x.ndim - 2)) if keepdim else y


METHOD = Method(
    (GlobalAvgPool1d, GlobalAvgPool2d, GlobalAvgPool3d),
    summary="The mean of every plane.",
    paper=Paper("Network In Network", "Lin, Chen, Yan", 2013, "arXiv:1312.4400"),
    reference=reference,
    training="mean",
    inference="mean",
    operators=(global_average_pool,),
    cases=(
        Case("plane", {}),
        Case("flat", {"keepdim": False}),
        Case("1x1", {}, shape=(2, 3, 1, 1)),
        Case("1d", {}, shape=(2, 3, 11)),
        Case("3d", {"keepdim": False}, shape=(1, 2, 5, 6, 7)),
    ),
    space={"keepdim": (True, False)},
    limits=(Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9)),),
    notes=(
        "The mean of a plane without locations is NaN in torch and 0 in onnxruntime.",
        "The exported form sums in float64: onnxruntime's own float32 sums lose digits on large planes.",
    ),
)
