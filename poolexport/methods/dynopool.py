"""DynOPool: learn how far to shrink, and look at four points of every cell of the resulting grid.

    s = round(n r)                           cells along each axis, ties to even, at least 1; the product in float64
    p = (i + 1/2) n / s - 1/2                centre of cell i, in pixels
    y = max of x at (p_h +- d_h, p_w +- d_w)      by bilinear interpolation, at positions clamped to the input

d is a quarter of the cell, or given in pixels, fixed or learned. In training the gradient passes the rounding as if it
were not there; the answer is the same in training and inference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from numbers import Real
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice, widened
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops.query_pool import query_pool


class DynOPool2d(Layer):
    """Pooling with a learned scale, which may enlarge as well as shrink.

    With ``ratio=0.5`` and the default offset this is 2x2 max pooling on even sizes, exactly. The paper's limit on the
    cost of the whole network is a loss term, and not part of the layer; nor is its reparameterised scale.

    Args:
        ratio: output size over input size, a number or one for the rows and one for the columns; fixed, or where
            training starts.
        learned: hold the ratio in a parameter.
        offset: how far the query points are from the centre of a cell, in pixels, a number or one per axis; None for
            a quarter of the cell.
        learned_offset: hold the offset in a parameter; needs ``offset``.
        reduce: "max" (the paper's usual choice) or "average" of the four points.

    Parameters:
        r: the ratios where they are learned, shape (2,).
        delta: the offsets where they are learned, shape (2,).

    Shape:
        (N, C, H, W) to (N, C, H', W') with ``H' = max(1, round(H r_h))`` and ``W' = max(1, round(W r_w))``.

    Raises:
        ValueError: an option out of range, or an input of another rank or without cells.

    Example:
        >>> import torch
        >>> from poolexport.nn import DynOPool2d
        >>> DynOPool2d(0.5, learned=False)(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[[[ 5.,  7.],
                  [13., 15.]]]])

    Source:
        Jang, Chu, Kim, Han, CVPR 2022, section 3. There is no official code; the quarter cell is an interpretation.
    """

    rank: ClassVar[int] = 2

    def __init__(
        self,
        ratio: float | Sequence[float] = 0.5,
        learned: bool = True,
        offset: float | Sequence[float] | None = None,
        learned_offset: bool = False,
        reduce: str = "max",
    ) -> None:
        super().__init__()
        self.ratio = _pair("ratio", ratio)
        if min(self.ratio) <= 0:
            raise ValueError(f"ratio must be above 0, got {ratio!r}")
        if offset is None and learned_offset:
            raise ValueError("learned_offset needs an offset, in pixels; the quarter of a cell is not learned")
        require_choice("reduce", reduce, ("max", "average"))
        self.offset = None if offset is None else _pair("offset", offset)
        self.reduce = reduce
        self.r = nn.Parameter(torch.tensor(self.ratio)) if learned else None
        self.delta = nn.Parameter(torch.tensor(self.offset)) if learned_offset else None

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, 2, type(self).__name__)
        if not torch.compiler.is_compiling() and min(x.shape[2:]) < 1:
            raise ValueError(f"there is nothing to pool in an input of shape {tuple(x.shape)}")
        if not torch.compiler.is_compiling():
            self._require_sane()
        relative = int(self.offset is None)
        y = query_pool(widened(x), self._size(x), self._offset(x), relative=relative, reduce=self.reduce)
        return y.to(x.dtype)

    def _require_sane(self) -> None:
        if self.r is not None and not bool(((self.r > 0) & self.r.isfinite()).all()):
            raise ValueError(f"a learned ratio must stay above 0 and finite, got {self.r.detach().tolist()}")
        if self.delta is not None and not bool(self.delta.isfinite().all()):
            raise ValueError(f"a learned offset must stay finite, got {self.delta.detach().tolist()}")

    def _size(self, x: Tensor) -> Tensor:
        """Rows and columns of the grid, rounded, with the gradient of the unrounded product."""
        ratio = self._in_float64(x, self.ratio) if self.r is None else self.r.double()
        lengths = torch.stack([torch.scalar_tensor(n, dtype=torch.float64, device=x.device) for n in x.shape[2:]])
        size = lengths * ratio
        rounded = torch.round(size).clamp_min(1.0).detach()
        return rounded + (size - size.detach()) if torch.is_grad_enabled() and size.requires_grad else rounded

    def _offset(self, x: Tensor) -> Tensor:
        if self.delta is not None:
            return self.delta.double()
        return self._in_float64(x, self.offset or (0.25, 0.25))

    @staticmethod
    def _in_float64(x: Tensor, values: Sequence[float]) -> Tensor:
        return x.new_tensor(values, dtype=torch.float64)

    def extra_repr(self) -> str:
        kinds = f"learned={self.r is not None}, learned_offset={self.delta is not None}"
        return f"ratio={self.ratio}, offset={self.offset}, {kinds}, reduce={self.reduce!r}"


def _pair(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    entries = tuple(value) if isinstance(value, Sequence) else (value, value)
    real = all(isinstance(entry, Real) and not isinstance(entry, bool) for entry in entries)
    if len(entries) != 2 or not real or not all(math.isfinite(entry) for entry in entries):
        raise ValueError(f"{name} must be a finite number or two, got {value!r}")
    return float(entries[0]), float(entries[1])


def reference(
    x: ArrayLike,
    ratio: float | Sequence[float] = 0.5,
    learned: bool = True,
    offset: float | Sequence[float] | None = None,
    learned_offset: bool = False,
    reduce: str = "max",
    r: ArrayLike | None = None,
    delta: ArrayLike | None = None,
) -> Floats:
    """DynOPool, point by point, at positions that are exact fractions; parameters replace the options they start from.

    A neighbour of weight 0 adds nothing, so infinities and NaN next to a point that lies on a pixel do not matter.
    """
    x = np.asarray(x, dtype=np.float64)
    scales = np.broadcast_to(np.asarray(ratio if r is None else r, dtype=np.float64), 2)
    distances = offset if delta is None else delta
    axes = []
    for axis, n in enumerate(x.shape[2:]):
        s = max(1, round(n * float(scales[axis])))
        given = None if distances is None else float(np.broadcast_to(np.asarray(distances, dtype=np.float64), 2)[axis])
        axes.append([_two_points(i, n, s, given) for i in range(s)])
    y = np.empty((*x.shape[:2], len(axes[0]), len(axes[1])))
    for h, rows in enumerate(axes[0]):
        for w, columns in enumerate(axes[1]):
            points = np.stack([_at(x, row, column) for row in rows for column in columns], axis=-1)
            y[:, :, h, w] = points.max(axis=-1) if reduce == "max" else exact_sum(points, 4)
    return y


def _two_points(i: int, n: int, s: int, distance: float | None) -> tuple[Fraction, Fraction]:
    centre = Fraction((2 * i + 1) * n, 2 * s) - Fraction(1, 2)
    d = Fraction(n, 4 * s) if distance is None else Fraction(distance)
    low, high = (min(max(point, Fraction(0)), Fraction(n - 1)) for point in (centre - d, centre + d))
    return low, high


def _at(x: Floats, row: Fraction, column: Fraction) -> Floats:
    """Return the planes at a point between pixels."""
    terms = [
        float(row_share * column_share) * x[:, :, h, w]
        for h, row_share in _neighbours(row)
        for w, column_share in _neighbours(column)
    ]
    return exact_sum(np.stack(terms, axis=-1))


def _neighbours(point: Fraction) -> list[tuple[int, Fraction]]:
    """Return the pixels around a point that have any weight, with their weight."""
    below = math.floor(point)
    share = point - below
    return [(below, 1 - share), (below + 1, share)] if share else [(below, Fraction(1))]


METHOD = Method(
    (DynOPool2d,),
    summary="A grid of a learned size over the input; the largest of four interpolated points in each of its cells.",
    paper=Paper(
        "Pooling Revisited: Your Receptive Field is Suboptimal", "Jang, Chu, Kim, Han", 2022, "arXiv:2205.15254"
    ),
    reference=reference,
    training="maximum of four points per cell of a grid of learned size",
    inference="the same, at the learned size",
    operators=(query_pool,),
    cases=(
        Case("half", {"ratio": 0.5}),
        Case("half-even", {"ratio": 0.5}, shape=(1, 2, 8, 10)),
        Case("trained", {"ratio": 0.5}, state={"r": [0.40625, 0.71875]}),
        Case("fixed", {"ratio": (0.7, 1 / 3), "learned": False}, shape=(1, 2, 10, 12)),
        Case("enlarging", {"ratio": (1.5, 2.0)}, shape=(1, 2, 5, 7)),
        Case("same-size", {"ratio": 1.0, "learned": False}, shape=(1, 2, 5, 7)),
        Case("offset", {"ratio": 0.5, "offset": 0.75}),
        Case(
            "learned-offset",
            {"ratio": (0.75, 0.5), "offset": (0.5, 1.25), "learned_offset": True},
            state={"delta": [0.3125, 2.75]},
        ),
        Case("average", {"ratio": (0.375, 0.625), "reduce": "average"}),
        Case("one-cell", {"ratio": 0.0625}, shape=(1, 2, 5, 7)),
    ),
    space={
        "ratio": (0.5, 0.25, (0.75, 0.375), (1.5, 0.5), 2.0, 0.0625),
        "learned": (True, False),
        "offset": (None, None, 0.5, (0.0, 1.25), 3.0),
        "learned_offset": (False, True),
        "reduce": ("max", "average"),
    },
    limits=(
        Limit({"ratio": 0}, ValueError, "ratio must be above 0"),
        Limit({"ratio": math.inf}, ValueError, "ratio must be a finite number or two"),
        Limit({"ratio": (0.5, 0.5, 0.5)}, ValueError, "ratio must be a finite number or two"),
        Limit({"offset": math.nan}, ValueError, "offset must be a finite number or two"),
        Limit({"learned_offset": True}, ValueError, "learned_offset needs an offset"),
        Limit({"reduce": "sum"}, ValueError, "reduce must be one of"),
        Limit({}, ValueError, "there is nothing to pool", shape=(1, 1, 0, 4)),
        Limit({}, ValueError, "expects an input of shape", shape=(1, 3, 4)),
    ),
    notes=(
        "The paper leaves the offset open; the quarter of a cell makes a ratio of 1/2 on even sizes 2x2 max pooling.",
        "Ties of the rounding go to the even number, as in torch and ONNX: 9 rows at a ratio of 1/2 become 4.",
        "A ratio held in half precision is a rounded one: layer.half() may change the size of the answer.",
        "In a file the ratio is fixed, and the output sizes follow the input.",
    ),
)
