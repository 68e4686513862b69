"""Top-k pooling (Shi et al., rank-based average): the mean of the k largest cells of every window.

    x_(1) >= x_(2) >= ... >= x_(m)      the m cells of the window
    y = (x_(1) + ... + x_(j)) / j       j = min(k, m)

k = 1 is the maximum, and k = the window's size the mean. Over a whole plane the k largest are averaged too, or, in
k-max pooling (Kalchbrenner et al.), kept in the order in which they appear. Training and inference are the same; there
is nothing to learn.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, WindowLayer, require_choice
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport_ops import require_rank
from poolexport_ops._window import Ints
from poolexport_ops.k_max_pool import k_max_pool
from poolexport_ops.sorted_weighted_pool import sorted_weighted_pool


class _TopKPool(WindowLayer):
    """Mean of the k largest cells of every window.

    Args:
        k: how many cells are averaged, at most as many as the window has.
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: cells added on both sides, at most half the kernel; they have no rank.
        ceil_mode: keep the last, partial window.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range, an input of another rank, or one smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import TopKPool2d
        >>> TopKPool2d(2, kernel_size=2)(torch.tensor([[[[1.0, 2.0], [8.0, 4.0]]]])).item()
        6.0

    Source:
        Shi, Ye, Wu, Neural Networks 83, 2016 (rank-based average pooling); Caffe code of shizenglin.
    """

    def __init__(
        self, k: int = 2, kernel_size: Ints = 2, stride: Ints | None = None, padding: Ints = 0, ceil_mode: bool = False
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        _require_count(k)
        if k > self.window.size:
            raise ValueError(f"k must be at most the window's {self.window.size} cells, got {k}")
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        ranks = np.arange(self.window.size)
        averaged = np.minimum(ranks + 1, self.k)[:, None]
        rows = (ranks < averaged) / averaged
        return sorted_weighted_pool(x, **self.window.onnx(), weights=rows.ravel().tolist())

    def extra_options(self) -> dict[str, Any]:
        return {"k": self.k}


class TopKPool1d(_TopKPool):
    rank = 1


class TopKPool2d(_TopKPool):
    rank = 2


class TopKPool3d(_TopKPool):
    rank = 3


class _GlobalTopKPool(Layer):
    """Mean of the k largest cells of every plane.

    Args:
        k: how many cells are averaged.
        keepdim: keep the spatial axes, with length 1.

    Shape:
        (N, C, *spatial) to (N, C, 1, ...), or to (N, C) without ``keepdim``.

    Raises:
        ValueError: k is not a positive int, an input of another rank, or one of fewer than k locations.

    Example:
        >>> import torch
        >>> from poolexport.nn import GlobalTopKPool2d
        >>> GlobalTopKPool2d(2, keepdim=False)(torch.tensor([[[[1.0, 2.0], [8.0, 4.0]]]]))
        tensor([[6.]])

    Source:
        Durand, Mordan, Thome, Cord, CVPR 2017 (the k maxima of WILDCAT pooling).
    """

    rank: ClassVar[int]

    def __init__(self, k: int, keepdim: bool = True) -> None:
        super().__init__()
        _require_count(k)
        self.k = k
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        y = k_max_pool(x.double().flatten(2), k=self.k, by_position=False).mean(2).to(x.dtype)
        return y.reshape(*y.shape, *(1,) * self.rank) if self.keepdim else y

    def extra_repr(self) -> str:
        return f"k={self.k}, keepdim={self.keepdim}"


class GlobalTopKPool1d(_GlobalTopKPool):
    rank = 1


class GlobalTopKPool2d(_GlobalTopKPool):
    rank = 2


class GlobalTopKPool3d(_GlobalTopKPool):
    rank = 3


class KMaxPool1d(Layer):
    """The k largest cells of every sequence; of equal cells, the first.

    Args:
        k: how many cells are kept.
        order: "position" (as they appear in the sequence, the paper) or "value" (descending).

    Shape:
        (N, C, L) to (N, C, k).

    Raises:
        ValueError: an option out of range, an input of another rank, or a sequence shorter than k.

    Example:
        >>> import torch
        >>> from poolexport.nn import KMaxPool1d
        >>> KMaxPool1d(2)(torch.tensor([[[1.0, 4.0, 2.0, 8.0]]]))
        tensor([[[4., 8.]]])

    Source:
        Kalchbrenner, Grefenstette, Blunsom, ACL 2014, section 3.2.
    """

    rank: ClassVar[int] = 1

    def __init__(self, k: int, order: str = "position") -> None:
        super().__init__()
        _require_count(k)
        require_choice("order", order, ("position", "value"))
        self.k = k
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        return k_max_pool(x, k=self.k, by_position=self.order == "position")

    def extra_repr(self) -> str:
        return f"k={self.k}, order={self.order!r}"


def _require_count(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be a positive int, got {k!r}")


def reference(
    x: ArrayLike,
    k: int = 2,
    kernel_size: PerAxis | None = None,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    keepdim: bool | None = None,
    order: str | None = None,
) -> Floats:
    """Top-k pooling, slowly, in float64; NaN in a window or plane makes its whole answer NaN.

    `keepdim` marks the mean over planes, and `order` the k-max of sequences.
    """
    x = np.asarray(x, dtype=np.float64)
    if order is not None:
        return _kept(x, k, order)
    if keepdim is not None:
        y = _mean_of_largest(x.reshape(*x.shape[:2], int(np.prod(x.shape[2:]))), k)
        return y.reshape(*y.shape, *(1,) * (x.ndim - 2)) if keepdim else y
    window = (2 if kernel_size is None else kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, _, _ in each_window(x, *window):
        y[(..., *index)] = _mean_of_largest(cells, k)
    return y


def _mean_of_largest(cells: Floats, k: int) -> Floats:
    largest = np.sort(cells, axis=-1)[..., -k:]
    return np.where(np.isnan(cells).any(axis=-1), np.nan, exact_sum(largest, largest.shape[-1]))


def _kept(x: Floats, k: int, order: str) -> Floats:
    y = np.empty((*x.shape[:2], k))
    for plane in np.ndindex(x.shape[:2]):
        row = x[plane]
        places = sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]
        y[plane] = row[sorted(places) if order == "position" else places]
        if np.isnan(row).any():
            y[plane] = np.nan
    return y


METHOD = Method(
    (TopKPool1d, TopKPool2d, TopKPool3d),
    summary="The mean of the k largest cells of every window.",
    paper=Paper(
        "Rank-based pooling for deep convolutional neural networks",
        "Shi, Ye, Wu",
        2016,
        "doi:10.1016/j.neunet.2016.07.003",
    ),
    reference=reference,
    training="mean of the k largest",
    inference="mean of the k largest",
    operators=(sorted_weighted_pool, k_max_pool),
    variants=(GlobalTopKPool1d, GlobalTopKPool2d, GlobalTopKPool3d, KMaxPool1d),
    cases=(
        Case("2-of-2x2", {"k": 2, "kernel_size": 2}),
        Case("3-of-3x3", {"k": 3, "kernel_size": 3, "stride": 2}),
        Case("padded", {"k": 5, "kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, shape=(1, 2, 8, 10)),
        Case("maximum", {"k": 1, "kernel_size": 3}),
        Case("mean", {"k": 6, "kernel_size": (3, 2), "stride": 1}),
        Case("1d", {"k": 2, "kernel_size": 3, "stride": 2}, shape=(2, 3, 11)),
        Case("3d", {"k": 3, "kernel_size": 2}, shape=(1, 2, 5, 6, 7)),
        Case("plane", {"k": 7, "keepdim": True}, layer=GlobalTopKPool2d),
        Case("flat", {"k": 3, "keepdim": False}, layer=GlobalTopKPool2d),
        Case("row", {"k": 3, "keepdim": True}, shape=(2, 3, 11), layer=GlobalTopKPool1d),
        Case("volume", {"k": 9, "keepdim": True}, shape=(1, 2, 4, 5, 6), layer=GlobalTopKPool3d),
        Case("k-max", {"k": 4, "order": "position"}, shape=(2, 3, 11), layer=KMaxPool1d),
        Case("k-max-by-value", {"k": 4, "order": "value"}, shape=(2, 3, 11), layer=KMaxPool1d),
    ),
    space={
        "k": (1, 2, 3, 4),
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, True),
    },
    limits=(
        Limit({"k": 0}, ValueError, "k must be a positive int"),
        Limit({"k": 5}, ValueError, "k must be at most the window's 4 cells"),
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
    ),
    notes=(
        "A NaN makes the whole answer of its window or plane NaN; torch.topk alone takes it for the largest value.",
        "The k-max pooling of many text networks sorts by value; the paper keeps the order of the sequence.",
    ),
)
