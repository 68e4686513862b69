"""Average and maximum of every plane, together: added, averaged, or side by side.

    a = mean(x), m = max(x)      over all locations of one channel
    y = (a + m) / 2,  or a + m,  or (a_1 ... a_C, m_1 ... m_C),  or (m_1 ... m_C, a_1 ... a_C)

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice, widened
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops.global_average_pool import global_average_pool
from poolexport_ops.global_max_pool import global_max_pool

COMBINATIONS = ("mean", "sum", "concat_avg_max", "concat_max_avg")


class _AvgMaxPool(Layer):
    """Global average and global maximum, combined.

    Args:
        combine: "mean" is half of each (timm's "avgmax"); "sum" adds them; "concat_avg_max" puts the C averages before
            the C maxima (timm's "catavgmax"); "concat_max_avg" the maxima before the averages (fastai).
        keepdim: keep the spatial axes, with length 1.

    Shape:
        (N, C, *spatial) to (N, F, 1, ...), or to (N, F) without ``keepdim``, with ``F = 2 C`` where ``combine``
        concatenates and ``F = C`` otherwise.

    Raises:
        ValueError: an unknown ``combine``, or an input of another rank.

    Example:
        >>> import torch
        >>> from poolexport.nn import AvgMaxPool2d
        >>> x = torch.tensor([[[[1.0, 2.0], [6.0, 3.0]]]])
        >>> AvgMaxPool2d(keepdim=False)(x), AvgMaxPool2d("concat_max_avg", keepdim=False)(x)
        (tensor([[4.5000]]), tensor([[6., 3.]]))

    Source:
        fastai AdaptiveConcatPool2d; timm AdaptiveAvgMaxPool2d and AdaptiveCatAvgMaxPool2d.
    """

    rank: ClassVar[int]

    def __init__(self, combine: str = "mean", keepdim: bool = True) -> None:
        super().__init__()
        require_choice("combine", combine, COMBINATIONS)
        self.combine = combine
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        axes, keepdims = list(range(2, 2 + self.rank)), int(self.keepdim)
        wide = widened(x)
        average = global_average_pool(wide, axes=axes, keepdims=keepdims)
        maximum = global_max_pool(wide, axes=axes, keepdims=keepdims)
        return self._combined(average, maximum).to(x.dtype)

    def _combined(self, average: Tensor, maximum: Tensor) -> Tensor:
        if self.combine == "mean":
            return 0.5 * average + 0.5 * maximum
        if self.combine == "sum":
            return average + maximum
        order = (average, maximum) if self.combine == "concat_avg_max" else (maximum, average)
        return torch.cat(order, dim=1)

    def extra_repr(self) -> str:
        return f"combine={self.combine!r}, keepdim={self.keepdim}"


class AvgMaxPool1d(_AvgMaxPool):
    rank = 1


class AvgMaxPool2d(_AvgMaxPool):
    rank = 2


class AvgMaxPool3d(_AvgMaxPool):
    rank = 3


def reference(x: ArrayLike, combine: str = "mean", keepdim: bool = True) -> Floats:
    """Average and maximum heads, slowly, in float64.

    A plane with NaN is NaN in both parts. The formulas hold as written: +inf in one part and -inf in the other, or a
    plane with both, add up to NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    locations = math.prod(x.shape[2:])
    planes = x.reshape(*x.shape[:2], locations)
    ordered = np.sort(planes, axis=-1)  # NaN sorts last, so it wins
    largest, mean = ordered[..., -1], exact_sum(planes, locations)
    y = {
        "mean": exact_sum(np.stack([mean, largest], axis=-1), 2),
        "sum": exact_sum(np.stack([mean, largest], axis=-1)),
        "concat_avg_max": np.concatenate([mean, largest], axis=1),
        "concat_max_avg": np.concatenate([largest, mean], axis=1),
    }[combine]
    return y.reshape(*y.shape, *(1,) * (x.ndim - 2)) if keepdim else y


METHOD = Method(
    (AvgMaxPool1d, AvgMaxPool2d, AvgMaxPool3d),
    summary="The mean and the largest cell of every plane, averaged, added or side by side.",
    paper=Paper("fastai: A Layered API for Deep Learning", "Howard, Gugger", 2020, "arXiv:2002.04688"),
    reference=reference,
    training="average and maximum, combined",
    inference="the same combination",
    operators=(global_average_pool, global_max_pool),
    cases=(
        Case("mean", {}),
        Case("sum", {"combine": "sum"}),
        Case("timm-concat", {"combine": "concat_avg_max"}),
        Case("fastai", {"combine": "concat_max_avg", "keepdim": False}),
        Case("flat", {"combine": "mean", "keepdim": False}, shape=(1, 2, 8, 10)),
        Case("1x1", {"combine": "concat_avg_max"}, shape=(2, 3, 1, 1)),
        Case("1d", {"combine": "concat_max_avg"}, shape=(2, 3, 11)),
        Case("3d", {"keepdim": False}, shape=(1, 2, 5, 6, 7)),
        Case("3d-concat", {"combine": "concat_avg_max", "keepdim": False}, shape=(1, 2, 5, 6, 7)),
    ),
    space={"combine": COMBINATIONS, "keepdim": (True, False)},
    limits=(
        Limit({"combine": "concat"}, ValueError, "combine must be one of"),
        Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
    ),
    notes=("timm concatenates the averages first, fastai the maxima; a head trained with one order needs that order.",),
)
