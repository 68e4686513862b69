"""Ordinal pooling (Deliège et al.): the cells of every window, sorted, and weighted by their rank.

    x_(1) >= x_(2) >= ... >= x_(K)      the K cells of the window
    y = sum(w_r x_(r))                  w_r >= 0 with sum 1, learned, one set per channel or for all

Rank-based weighted pooling (Shi et al.) has fixed weights: w_r = a (1 - a)^(r - 1). Training and inference are the
same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer, require_choice, widened
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport_ops._window import Ints
from poolexport_ops.ordinal_pool import ordinal_pool
from poolexport_ops.sorted_weighted_pool import sorted_weighted_pool


class _OrdinalPool(WindowLayer):
    """Learned weights for the sorted cells of every window.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: zeros added on both sides, at most half the kernel; they are sorted with the cells, as in the authors'
            package.
        channels: learn one set of weights per channel, for this many; None learns one for the layer.
        constraint: "positive" (negative entries count as 0, and the rest is divided by its sum: the authors' package),
            "softmax" of the entries, or "free" (the entries as they are).

    Parameters:
        ordinal_weights: (channels, K) or (1, K), the largest cell's weight first; equal at first, so that an untrained
            layer averages.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``.

    Raises:
        ValueError: an option out of range, an input of another rank, of another number of channels, or one smaller
            than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import OrdinalPool2d
        >>> OrdinalPool2d(2)(torch.tensor([[[[1.0, 2.0], [8.0, 5.0]]]])).item()
        4.0

    Source:
        Deliège, Istasse, Kumar, De Vleeschouwer, Van Droogenbroeck, 2021, section 3; package
        mistasse/ordinal-pooling-layers.
    """

    def __init__(
        self,
        kernel_size: Ints = 2,
        stride: Ints | None = None,
        padding: Ints = 0,
        channels: int | None = None,
        constraint: str = "positive",
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        require_choice("constraint", constraint, ("positive", "softmax", "free"))
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be a positive int or None, got {channels!r}")
        self.channels = channels
        self.constraint = constraint
        start = 0.0 if constraint == "softmax" else 1 / self.window.size
        self.ordinal_weights = nn.Parameter(torch.full((channels or 1, self.window.size), start))

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        if self.channels is not None and x.shape[1] != self.channels:
            raise ValueError(f"the layer has {self.channels} channels, the input has {x.shape[1]}")
        return ordinal_pool(widened(x), self._weights(), **self.window.onnx()).to(x.dtype)

    def _weights(self) -> Tensor:
        entries = widened(self.ordinal_weights)
        if self.constraint == "free":
            return entries
        if self.constraint == "softmax":
            return entries.softmax(-1)
        positive = entries.relu()
        sums = positive.sum(-1, keepdim=True)
        return positive / torch.where(sums == 0, torch.ones_like(sums), sums)

    def extra_options(self) -> dict[str, Any]:
        return {"channels": self.channels, "constraint": self.constraint}


class OrdinalPool1d(_OrdinalPool):
    rank = 1


class OrdinalPool2d(_OrdinalPool):
    rank = 2


class OrdinalPool3d(_OrdinalPool):
    rank = 3


class _RankWeightedPool(WindowLayer):
    """Fixed, geometric weights for the sorted cells of every window.

    Args:
        alpha: the weight of the largest cell, in (0, 1]; every further rank weighs 1 - alpha times as much.
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: cells added on both sides, at most half the kernel; they have no rank.
        ceil_mode: keep the last, partial window; it uses the first of the weights.
        normalize: divide the weights by their sum, which is 1 - (1 - alpha)^m for m cells. The authors do not.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range, an input of another rank, or one smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import RankWeightedPool2d
        >>> RankWeightedPool2d(0.5, 2)(torch.tensor([[[[1.0, 2.0], [8.0, 4.0]]]])).item()
        5.3125

    Source:
        Shi, Ye, Wu, Neural Networks 83, 2016 (rank-based weighted pooling); Caffe code of shizenglin.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        kernel_size: Ints = 2,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        normalize: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha!r}")
        self.alpha = alpha
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        rows = np.tril(np.tile(self.alpha * (1 - self.alpha) ** np.arange(self.window.size), (self.window.size, 1)))
        if self.normalize:
            rows = rows / rows.sum(1, keepdims=True)
        return sorted_weighted_pool(x, **self.window.onnx(), weights=rows.ravel().tolist())

    def extra_options(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "normalize": self.normalize}


class RankWeightedPool1d(_RankWeightedPool):
    rank = 1


class RankWeightedPool2d(_RankWeightedPool):
    rank = 2


class RankWeightedPool3d(_RankWeightedPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis = 2,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    channels: int | None = None,
    constraint: str = "positive",
    ordinal_weights: ArrayLike | None = None,
    alpha: float | None = None,
    ceil_mode: bool = False,
    normalize: bool = False,
) -> Floats:
    """Pooling by rank, slowly, in float64; `alpha` marks the fixed weights, of which padding has no share.

    Ranks of weight 0 take no part, even infinite ones; NaN makes every other rank of its window NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    if alpha is None:
        amounts = [(padding, padding)] * (x.ndim - 2) if isinstance(padding, int) else [(p, p) for p in padding]
        x, padding = np.pad(x, [(0, 0), (0, 0), *amounts]), 0
    window = (kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, _, _ in each_window(x, *window):
        m = cells.shape[-1]
        if alpha is None:
            weights = _learned(ordinal_weights, m, constraint)
        else:
            weights = np.array([[alpha * (1 - alpha) ** r for r in range(m)]])
            weights = weights / (1 - (1 - alpha) ** m) if normalize else weights
        ranked = -np.sort(-cells, axis=-1)
        ranked = np.where(np.isnan(cells).any(axis=-1, keepdims=True), np.nan, ranked)
        y[(..., *index)] = exact_sum(np.where(weights == 0, 0.0, weights * ranked))
    return y


def _learned(entries: ArrayLike | None, cells: int, constraint: str) -> Floats:
    if entries is None:
        return np.full((1, cells), 1 / cells)
    w = np.asarray(entries, dtype=np.float64)
    if constraint == "free":
        return w
    w = np.exp(w - w.max(axis=1, keepdims=True)) if constraint == "softmax" else np.maximum(w, 0.0)
    sums = exact_sum(w)[:, None]
    return np.divide(w, sums, out=np.zeros_like(w), where=sums > 0)


METHOD = Method(
    (OrdinalPool1d, OrdinalPool2d, OrdinalPool3d),
    summary="The sorted cells of every window, weighted by rank.",
    paper=Paper(
        "Ordinal Pooling",
        "Deliège, Istasse, Kumar, De Vleeschouwer, Van Droogenbroeck",
        2021,
        "arXiv:2109.01561",
    ),
    reference=reference,
    training="sorted cells with learned weights",
    inference="sorted cells with the same weights",
    operators=(ordinal_pool, sorted_weighted_pool),
    variants=(RankWeightedPool1d, RankWeightedPool2d, RankWeightedPool3d),
    cases=(
        Case("2x2", {"kernel_size": 2}, state={"ordinal_weights": [[0.5, 0.25, 0.2, 0.05]]}),
        Case("initial", {"kernel_size": 3, "stride": 2}),
        Case(
            "per-channel",
            {"channels": 3},
            state={"ordinal_weights": [[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.1, -0.4, 0.6, 2.0]]},
        ),
        Case("nothing-positive", {}, state={"ordinal_weights": [[-1.0, -0.5, 0.0, -2.0]]}),
        Case("softmax", {"constraint": "softmax"}, state={"ordinal_weights": [[1.0, 0.5, -0.3, 0.0]]}),
        Case("free", {"constraint": "free"}, state={"ordinal_weights": [[1.5, -0.75, 0.5, 0.0]]}),
        Case("padded", {"kernel_size": 3, "stride": 2, "padding": 1}, shape=(1, 2, 8, 10)),
        Case("1d", {"kernel_size": 3}, shape=(2, 3, 11), state={"ordinal_weights": [[0.6, 0.3, 0.1]]}),
        Case("3d", {"kernel_size": (1, 2, 2)}, shape=(1, 2, 4, 5, 6)),
        Case("geometric", {"alpha": 0.5, "kernel_size": 3, "stride": 2}, layer=RankWeightedPool2d),
        Case(
            "geometric-cut",
            {"alpha": 0.3, "kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "normalize": True},
            shape=(1, 2, 8, 10),
            layer=RankWeightedPool2d,
        ),
        Case(
            "geometric-1d",
            {"alpha": 0.7, "kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "normalize": False},
            shape=(2, 3, 11),
            layer=RankWeightedPool1d,
        ),
        Case(
            "geometric-3d",
            {"alpha": 1.0, "kernel_size": 2, "stride": 1, "padding": 1, "ceil_mode": False, "normalize": True},
            shape=(1, 2, 4, 5, 6),
            layer=RankWeightedPool3d,
        ),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "channels": (None, 3),
        "constraint": ("positive", "softmax", "free"),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"channels": 0}, ValueError, "channels must be a positive int"),
        Limit({"constraint": "unit"}, ValueError, "constraint must be one of"),
        Limit({"channels": 2}, ValueError, "the layer has 2 channels", shape=(1, 3, 4, 4)),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
    ),
    notes=(
        "A set of weights without a positive entry gives 0; the authors' package divides 0 by 0.",
        "The authors' package starts from random weights; here an untrained layer is average pooling.",
        "Rank-based average pooling is TopKPool. Rank-based stochastic pooling draws in training and answers "
        "RankWeightedPool in inference; the drawing is not provided.",
    ),
)
