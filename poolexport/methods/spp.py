"""Spatial pyramid pooling (He et al.): the same map cut into n by n bins for several n, one vector of a fixed length.

y = the n_1 by n_1 bins of every channel, then those of n_2, and so on; the largest cell, or the mean, of each

Bins, along an axis of length a:

    adaptive        cells floor(i a / n) ... ceil((i + 1) a / n) - 1, in whole numbers
    window_stride   n windows of ceil(a / n) cells every floor(a / n)
    caffe           n windows of k = ceil(a / n) cells every k, the map padded by (n k - a + 1) / 2 (rounded down)
    sppnet          as adaptive, but i / n a in float32, and the maximum begins at 0

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops._regions import require_cells
from poolexport_ops.adaptive_average_pool import adaptive_average_pool
from poolexport_ops.adaptive_max_pool import adaptive_max_pool
from poolexport_ops.pyramid_level_pool import pyramid_level_pool, windows


class SpatialPyramidPool2d(Layer):
    """Bins of several sizes, one level after the other, as one vector; NaN wins over every number.

    Args:
        levels: bins along each axis, a number for every level, in the order of the output: (4, 2, 1) makes 21 bins.
            Caffe's pyramid_height of h is (1, 2, 4, ..., 2^(h - 1)).
        mode: "max" or "avg".
        bins: "adaptive"; "window_stride", the paper's rule for a map of known size, which may leave out the last cells
            and is refused where it does not make n bins; "caffe", the rule of Caffe's SPP layer, refused where Caffe
            refuses it, and with pads counted in averages; or "sppnet", the rule of the authors' detection code, whose
            maximum begins at 0 and which has no averages.

    Shape:
        (N, C, H, W) to (N, C (n_1^2 + n_2^2 + ...)); within a level channels, then rows, then columns.

    Raises:
        ValueError: an option out of range, an input of another rank or without cells, or a length of the map on which
            the rule does not make n bins.

    Example:
        >>> import torch
        >>> from poolexport.nn import SpatialPyramidPool2d
        >>> SpatialPyramidPool2d((2, 1))(torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]))
        tensor([[2., 3., 5., 6., 6.]])

    Source:
        He, Zhang, Ren, Sun, ECCV 2014, section 2.3 and appendix ("Implementation of Pooling Bins"); package
        ShaoqingRen/SPP_net (utils/spm_pool); BVLC Caffe, SPPLayer.
    """

    rank: ClassVar[int] = 2

    def __init__(self, levels: Sequence[int] = (4, 2, 1), mode: str = "max", bins: str = "adaptive") -> None:
        super().__init__()
        valid = isinstance(levels, Sequence) and bool(levels)
        if not valid or not all(isinstance(n, Integral) and 0 < n < 2**15 for n in levels):
            raise ValueError(f"levels must be a sequence of positive ints, got {levels!r}")
        require_choice("mode", mode, ("max", "avg"))
        require_choice("bins", bins, ("adaptive", "window_stride", "caffe", "sppnet"))
        if bins == "sppnet" and mode == "avg":
            raise ValueError("bins='sppnet' has no averages; choose mode='max', or bins='adaptive'")
        self.levels = tuple(int(n) for n in levels)
        self.mode = mode
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        require_cells(x, type(self).__name__)
        return torch.cat([self._level(x, n).flatten(1) for n in self.levels], 1)

    def _level(self, x: Tensor, n: int) -> Tensor:
        if self.bins == "adaptive":
            pool = adaptive_max_pool if self.mode == "max" else adaptive_average_pool
            return pool(x, output_size=[n, n])
        if not torch.compiler.is_compiling():
            for axis in (2, 3):
                windows(self.bins, n, x.shape[axis])
        reduce = "max" if self.mode == "max" else "average"
        return pyramid_level_pool(x, bins=n, rule=self.bins, reduce=reduce)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, mode={self.mode!r}, bins={self.bins!r}"


def reference(x: ArrayLike, levels: Sequence[int] = (4, 2, 1), mode: str = "max", bins: str = "adaptive") -> Floats:
    """Spatial pyramid pooling, slowly, in float64: bin after bin, every cell asked whether it lies inside."""
    x = np.asarray(x, dtype=np.float64)
    y = []
    for n in levels:
        level = np.empty((*x.shape[:2], n, n))
        for i, j in np.ndindex(n, n):
            rows, columns = (
                [cell for cell in range(a) if _inside(bins, cell, which, n, a)]
                for which, a in zip((i, j), x.shape[2:], strict=True)
            )
            cells = x[:, :, rows][:, :, :, columns].reshape(*x.shape[:2], len(rows) * len(columns))
            if mode == "avg":
                padded = math.prod(math.ceil(a / n) for a in x.shape[2:])
                level[:, :, i, j] = exact_sum(cells, padded if bins == "caffe" else cells.shape[2])
            else:
                best = np.where(np.isnan(cells).any(-1), np.nan, cells.max(-1))
                level[:, :, i, j] = np.where(best < 0, 0.0, best) if bins == "sppnet" else best
        y.append(level.reshape(x.shape[0], x.shape[1] * n * n))
    return np.concatenate(y, axis=1)


def _inside(bins: str, cell: int, i: int, n: int, a: int) -> bool:
    """Whether a cell of an axis of length a belongs to bin i of n."""
    if bins == "window_stride":
        return 0 <= cell - i * math.floor(a / n) < math.ceil(a / n)
    if bins == "caffe":
        window = math.ceil(a / n)
        return (cell + (window * n - a + 1) // 2) // window == i
    if bins == "sppnet":
        begin, end = (np.float32(k) / np.float32(n) * np.float32(a) for k in (i, i + 1))
        return bool(begin < cell + 1 and cell < end)
    return cell * n < (i + 1) * a and (cell + 1) * n > i * a


def illustration(image: Tensor) -> Tensor:
    """The three levels of a pyramid, enlarged, one below the other."""
    levels = [SpatialPyramidPool2d((n,))(image).unflatten(1, (-1, n, n)) for n in (8, 4, 2)]
    return torch.cat([F.interpolate(level, size=(8, 24)) for level in levels], 2)


METHOD = Method(
    (SpatialPyramidPool2d,),
    summary="The same map in bins of several sizes, as one vector of a fixed length.",
    paper=Paper(
        "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition",
        "He, Zhang, Ren, Sun",
        2014,
        "arXiv:1406.4729",
    ),
    reference=reference,
    training="bins of every level",
    inference="bins of every level",
    operators=(adaptive_max_pool, adaptive_average_pool, pyramid_level_pool),
    illustration=illustration,
    cases=(
        Case("4-2-1", {}, shape=(2, 3, 7, 9)),
        Case("3-1-averages", {"levels": (3, 1), "mode": "avg"}, shape=(2, 3, 7, 5)),
        Case("larger-than-input", {"levels": (6, 1, 2)}, shape=(1, 2, 4, 5)),
        Case("1x1", {"levels": (2, 1)}, shape=(2, 3, 1, 1)),
        Case("window-stride", {"levels": (3, 2), "bins": "window_stride"}, shape=(2, 3, 8, 7)),
        Case("window-stride-averages", {"levels": (2, 1), "bins": "window_stride", "mode": "avg"}, shape=(1, 2, 5, 7)),
        Case("caffe", {"levels": (1, 2, 4), "bins": "caffe"}, shape=(2, 3, 7, 11)),
        Case("caffe-averages", {"levels": (1, 2), "bins": "caffe", "mode": "avg"}, shape=(1, 2, 5, 7)),
        Case("sppnet", {"levels": (5, 1), "bins": "sppnet"}, shape=(1, 2, 25, 6)),
    ),
    space={
        "levels": ((1,), (2,), (2, 1), (1, 2, 4), (3,), (6, 3, 2, 1), (5, 7)),
        "mode": ("max", "avg"),
        "bins": ("adaptive", "adaptive", "window_stride", "caffe", "sppnet"),
    },
    limits=(
        Limit({"levels": ()}, ValueError, "levels must be a sequence of positive ints"),
        Limit({"levels": (2, 0)}, ValueError, "levels must be a sequence of positive ints"),
        Limit({"mode": "sum"}, ValueError, "mode must be one of"),
        Limit({"bins": "even"}, ValueError, "bins must be one of"),
        Limit({"bins": "sppnet", "mode": "avg"}, ValueError, "has no averages"),
        Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
        Limit({}, ValueError, "there is nothing to pool", shape=(1, 3, 0, 4), file="numbers"),
        Limit({"levels": (3,), "bins": "window_stride"}, ValueError, "make 4 bins, not 3", shape=(1, 3, 5, 7)),
        Limit({"levels": (4,), "bins": "window_stride"}, ValueError, "bins, not 4", shape=(1, 3, 8, 3)),
        Limit({"levels": (4,), "bins": "caffe"}, ValueError, "as long as a window", shape=(1, 3, 5, 8)),
    ),
    notes=(
        "The paper's text trains with windows of ceil(a / n) cells every floor(a / n); on many sizes they leave out "
        "the last cells, or do not make n bins. Its appendix, and its detection code, use overlapping bins.",
        "The detection code works out i / n a in float32: on 25 cells in 5 bins the third takes one cell more. Its "
        "maximum begins at 0, and it skips NaN, which bins='sppnet' keeps.",
        "Caffe's bins are shifted wherever a length is no multiple of n; its pads count in averages.",
    ),
)
