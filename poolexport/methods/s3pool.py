"""S3Pool (Zhai et al.): max pooling with stride 1, then rows and columns thinned at random.

step 1      M = max over every window of kernel_size, with stride 1
step 2      training    each axis falls into grids of g lines; each grid keeps g / s random ones, in order
            inference   y_i = mean of the real lines among s i - s // 2 ... s i - s // 2 + s - 1 of M, per axis
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
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape, per_axis
from poolexport_ops import Window, require_rank
from poolexport_ops import per_axis as ints_per_axis
from poolexport_ops._window import Ints
from poolexport_ops.average_pool import average_pool
from poolexport_ops.max_pool import max_pool


class _S3Pool(Layer):
    """Stochastic spatial sampling: dense maximum, then randomly kept rows and columns.

    One draw serves the whole batch and all channels; rows and columns are drawn independently, from torch's global
    generator.

    Args:
        kernel_size: window of the dense maximum, in cells, an int or one per spatial axis.
        stride: the factor by which step 2 shrinks; the kernel size by default.
        grid_size: lines per grid, a multiple of ``stride``; the stride by default. A larger grid is more random.
        maxpool: False leaves step 1 out.
        align: "official" keeps only whole windows in step 1 (n - kernel_size + 1 lines); "same" (the paper's text)
            keeps n lines, with windows cut at the far border.
        inference: "average" (the official code): averages of ``stride`` lines, shifted by half a window, padding not
            counted; "paper": the same without shift or padding; "expectation": the exact mean of the training draw;
            "subsample": every ``stride``-th line.

    Shape:
        (N, C, *spatial) to (N, C, *output). Training and "expectation" give ``(n // grid_size) (grid_size / stride)``;
        "average" gives ``floor((m + 2 (stride // 2) - stride) / stride) + 1`` of the m lines that step 1 leaves,
        which may be more than in training: by one for odd n with the default options; "paper"
        ``floor((m - stride) / stride) + 1``; "subsample" ``ceil(m / stride)``.

    Raises:
        ValueError: an option out of range, an input of another rank, or one smaller than the window or the grid.

    Example:
        >>> import torch
        >>> from poolexport.nn import S3Pool2d
        >>> S3Pool2d(2).eval()(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[[[ 5.0000,  6.5000],
                  [11.0000, 12.5000]]]])

    Source:
        Zhai et al., CVPR 2017, section 3; official code Shuangfei/s3pool, build_net.py.
    """

    rank: ClassVar[int]

    def __init__(
        self,
        kernel_size: Ints = 2,
        stride: Ints | None = None,
        grid_size: Ints | None = None,
        maxpool: bool = True,
        align: str = "official",
        inference: str = "average",
    ) -> None:
        super().__init__()
        self.kernel_size = ints_per_axis("kernel_size", kernel_size, self.rank, minimum=1)
        self.stride = self.kernel_size if stride is None else ints_per_axis("stride", stride, self.rank, minimum=1)
        self.grid_size = (
            self.stride if grid_size is None else ints_per_axis("grid_size", grid_size, self.rank, minimum=1)
        )
        for g, s in zip(self.grid_size, self.stride):
            if g % s:
                raise ValueError(f"grid_size must be a multiple of the stride {s}, got {g}")
        require_choice("align", align, ("official", "same"))
        require_choice("inference", inference, ("average", "paper", "expectation", "subsample"))
        self.maxpool = maxpool
        self.align = align
        self.inference = inference
        ones = (1,) * self.rank
        beyond = tuple(k - 1 if align == "same" else 0 for k in self.kernel_size)
        self.dense = Window(self.kernel_size, ones, (0,) * self.rank + beyond, ones)
        shift = tuple(s // 2 for s in self.stride) if inference == "average" else (0,) * self.rank
        self.lines = Window.from_torch(self.rank, self.stride, self.stride, shift)

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        lengths = x.shape[2:]
        m = max_pool(x, **self.dense.onnx()) if self.maxpool else x
        if self.training:
            return self._thin(m, lengths)
        if self.inference == "subsample":
            return m[tuple([slice(None)] * 2 + [slice(None, None, s) for s in self.stride])]
        if self.inference == "expectation":
            expected = widened(m)
            for axis, n in enumerate(lengths):
                expected = self._expected(expected, axis, n)
            return expected.to(x.dtype)
        return average_pool(m, **self.lines.onnx(), counted_pads=[0] * 2 * self.rank)

    def _thin(self, m: Tensor, lengths: torch.Size) -> Tensor:
        """Keep random lines along every axis; ``lengths`` of the input, before step 1, set the number of grids."""
        for axis, n in enumerate(lengths):
            g, keep = self._grid(axis, n, m.shape[2 + axis])
            starts = range(0, n // g * g, g)
            ends = [*starts[1:], m.shape[2 + axis]]
            kept = [
                start + torch.randperm(end - start, device=m.device)[:keep].sort().values
                for start, end in zip(starts, ends)
            ]
            m = m.index_select(2 + axis, torch.cat(kept))
        return m

    def _expected(self, m: Tensor, axis: int, n: int) -> Tensor:
        """The mean of ``_thin`` along one axis: every kept line is an order statistic of its grid."""
        g, keep = self._grid(axis, n, m.shape[2 + axis])
        odds = torch.tensor(_kept_line_odds(g, keep), dtype=m.dtype, device=m.device)
        grids, length = n // g, m.shape[2 + axis]
        line = torch.arange(grids * keep, device=m.device)
        grid, rank = line // keep, line % keep
        last = length - (grids - 1) * g
        lines_in_grid = torch.where(grid == grids - 1, last, g)
        shape = [-1 if a == 2 + axis else 1 for a in range(m.dim())]
        y = torch.zeros_like(m.index_select(2 + axis, grid))
        for j in range(odds.shape[2]):
            weight = odds[lines_in_grid, rank, j].reshape(shape)
            source = (grid * g + j).clamp(max=length - 1)
            # A line that is never kept adds nothing, even where it is infinite.
            y = y + torch.where(weight > 0, weight * m.index_select(2 + axis, source), 0.0)
        return y

    def _grid(self, axis: int, n: int, lines: int) -> tuple[int, int]:
        """Lines per grid and lines kept of each, for an axis of length n of which step 1 leaves ``lines``."""
        g = self.grid_size[axis]
        keep = g // self.stride[axis]
        if not torch.compiler.is_compiling():
            if n < g:
                raise ValueError(f"the grid does not fit: spatial axis {axis} has length {n}, grid_size is {g}")
            left = lines - (n // g - 1) * g
            if left < keep:
                raise ValueError(
                    f"the last grid of spatial axis {axis} has {left} lines left and must keep {keep}; "
                    "use a smaller kernel_size or another grid_size"
                )
        return g, keep

    @property
    def inference_rule(self) -> str:
        """The fixed rule of this layer in words."""
        lines = {
            "average": "shifted average of lines",
            "paper": "average of lines",
            "expectation": "the mean of the training draw",
            "subsample": "every line that the stride meets",
        }[self.inference]
        return f"{self.inference}: {'dense maximum, then ' if self.maxpool else ''}{lines}"

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, grid_size={self.grid_size}, "
            f"maxpool={self.maxpool}, align={self.align!r}, inference={self.inference!r}"
        )


def _kept_line_odds(g: int, keep: int) -> list[list[list[float]]]:
    """Odds that the r-th of ``keep`` kept lines is line j, for every grid of t lines: [t][r][j].

    A last grid holds up to 2 g - 1 lines.
    """
    most = 2 * g
    return [
        [
            [
                math.comb(j, r) * math.comb(t - 1 - j, keep - 1 - r) / math.comb(t, keep) if j < t >= keep else 0.0
                for j in range(most)
            ]
            for r in range(keep)
        ]
        for t in range(most)
    ]


class S3Pool1d(_S3Pool):
    rank = 1


class S3Pool2d(_S3Pool):
    rank = 2


class S3Pool3d(_S3Pool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis = 2,
    stride: PerAxis | None = None,
    grid_size: PerAxis | None = None,
    maxpool: bool = True,
    align: str = "official",
    inference: str = "average",
) -> Floats:
    """The inference rules of S3Pool, slowly, in float64.

    Args:
        x: (N, C, *spatial) with one to three spatial axes.
        kernel_size: window of step 1, in cells; int or one per axis, as are the next two.
        stride: s, the factor by which step 2 shrinks; None means `kernel_size`.
        grid_size: g, lines per grid, a multiple of `stride`; None means `stride`. Matters to the
            expectation alone.
        maxpool: False leaves step 1 out.
        align: "official" keeps the n - k + 1 whole windows; "same" keeps n, windows cut at the far end.
        inference: "average" as above; "paper" averages from line 0 without a shift; "subsample" keeps every
            s-th line; "expectation" is the exact mean of the training draw.

    Raises:
        ValueError: an option is unknown, or the expectation meets a grid with fewer lines than it must keep.
    """
    x = np.asarray(x, dtype=np.float64)
    axes = x.ndim - 2
    s = per_axis(kernel_size if stride is None else stride, axes)
    m = _dense_max(x, per_axis(kernel_size, axes), align) if maxpool else x
    if inference == "average":
        return _mean(m, s, padding=tuple(s_ // 2 for s_ in s))
    if inference == "paper":
        return _mean(m, s, padding=0)
    if inference == "subsample":
        return m[tuple(slice(None, None, s_) for s_ in (1, 1, *s))].copy()
    if inference == "expectation":
        g = s if grid_size is None else per_axis(grid_size, axes)
        for axis, (n, g_, s_) in enumerate(zip(x.shape[2:], g, s, strict=True), start=2):
            m = _expected_lines(m, axis, n, g_, s_)
        return m
    raise ValueError(f"unknown inference {inference!r}")


def _dense_max(x: Floats, k: tuple[int, ...], align: str) -> Floats:
    if align not in ("official", "same"):
        raise ValueError(f"unknown align {align!r}")
    if align == "same":
        x = np.pad(x, [(0, 0), (0, 0), *((0, k_ - 1) for k_ in k)], constant_values=-np.inf)
    m = np.empty(x.shape[:2] + output_shape(x.shape[2:], k, stride=1))
    for index, cells, _, _ in each_window(x, k, stride=1):
        m[(..., *index)] = cells.max(axis=-1)
    return m


def _mean(m: Floats, s: tuple[int, ...], padding: PerAxis) -> Floats:
    y = np.empty(m.shape[:2] + output_shape(m.shape[2:], s, s, padding))
    for index, cells, _, _ in each_window(m, s, s, padding):
        y[(..., *index)] = exact_sum(cells, cells.shape[-1])
    return y


def _expected_lines(m: Floats, axis: int, n: int, g: int, s: int) -> Floats:
    """Return the expected lines along one axis; n, its length before step 1, sets the number of grids."""
    lines, q = np.moveaxis(m, axis, -1), g // s
    grids = n // g
    if g % s or grids < 1:
        raise ValueError(f"grid_size {g} must be a multiple of stride {s} and at most the length {n}")
    kept = []
    for i in range(grids):
        grid = lines[..., g * i : g * (i + 1)] if i < grids - 1 else lines[..., g * i :]
        t = grid.shape[-1]
        if t < q:
            raise ValueError(f"grid {i} along axis {axis} has {t} lines left and must keep {q}")
        for r in range(q):
            draws = [math.comb(j, r) * math.comb(t - 1 - j, q - 1 - r) for j in range(t)]
            odds = np.array([draw / math.comb(t, q) for draw in draws])
            possible = odds > 0  # an infinite line that is never kept must not become 0 * inf
            kept.append(exact_sum(grid[..., possible] * odds[possible]))
    return np.moveaxis(np.stack(kept, axis=-1), -1, axis)


METHOD = Method(
    (S3Pool1d, S3Pool2d, S3Pool3d),
    summary="Dense maximum, then rows and columns kept at random in training and averaged in inference.",
    paper=Paper(
        "S3Pool: Pooling with Stochastic Spatial Sampling",
        "Zhai, Wu, Kumar, Cheng, Lu, Zhang, Feris",
        2017,
        "arXiv:1611.05138",
    ),
    reference=reference,
    training="dense maximum, then randomly kept rows and columns",
    inference="dense maximum, then average",
    operators=(max_pool, average_pool),
    random=True,
    cases=(
        Case("official", {}),
        Case("even", {"kernel_size": 2}, shape=(1, 2, 8, 10)),
        Case("3x3", {"kernel_size": 3}, shape=(1, 2, 10, 13)),
        Case("separate-stride", {"kernel_size": 3, "stride": 2}),
        Case("same", {"kernel_size": 2, "align": "same", "inference": "paper"}, shape=(1, 2, 8, 10)),
        Case("expectation", {"grid_size": 4, "inference": "expectation"}),
        Case("expectation-even", {"grid_size": 4, "inference": "expectation"}, shape=(1, 2, 8, 12)),
        Case("expectation-no-max", {"grid_size": 6, "stride": 3, "maxpool": False, "inference": "expectation"}),
        Case("subsample", {"inference": "subsample"}),
        Case("no-max", {"maxpool": False}),
        Case("1d", {"kernel_size": 2}, shape=(2, 3, 11)),
        Case("3d", {"kernel_size": 2}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "grid_size": (None, 2, 3, 4, 6),
        "maxpool": (True, False),
        "align": ("official", "same"),
        "inference": ("average", "paper", "expectation", "subsample"),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"grid_size": 3}, ValueError, "grid_size must be a multiple of the stride"),
        Limit({"align": "left"}, ValueError, "align must be one of"),
        Limit({"inference": "mean"}, ValueError, "inference must be one of"),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9)),
        Limit(
            {"kernel_size": 3, "stride": 2, "inference": "expectation"},
            ValueError,
            "the last grid of spatial axis 0 has 0 lines left",
            shape=(1, 1, 6, 9),
        ),
        Limit(
            {"grid_size": 8, "inference": "expectation"},
            ValueError,
            "the grid does not fit",
            shape=(1, 1, 4, 9),
            file="nothing",
        ),
    ),
    notes=(
        "The official inference rule may give more lines than training, on odd sizes with the default options and on "
        "others with other grids or without the first step; inference='expectation' gives the training size.",
        "Third-party ports that pad with zeros and count them are not imitated.",
    ),
)
