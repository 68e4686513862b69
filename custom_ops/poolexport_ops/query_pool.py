"""QueryPool: every cell of a grid laid over the input looks at four points around its centre.

    p = (i + 1/2) n / s - 1/2         centre of cell i, for an axis of length n that is cut into s cells
    q = p +- c n / s, or p +- c       c is a share of the cell, or in pixels; q is clamped to [0, n - 1]
    y = max, or mean, of x at the four points (q_h, q_w), by bilinear interpolation

A neighbour of weight 0 adds nothing, whatever it holds, so a point that falls on a pixel answers that pixel. Positions
are worked out in float64, by one division: a point that lies on a pixel is found there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator

#: From (N, C, H, W) to (H, W, N, C), and back.
TURN = (2, 3, 0, 1)


def torch_form(x: Tensor, size: Tensor, offset: Tensor, *, relative: int = 1, reduce: str = "max") -> Tensor:
    """Four interpolated points of every cell, reduced to one; differentiable in all three inputs.

    Args:
        x: (N, C, H, W).
        size: (2,) whole numbers in float64, the rows and columns of the grid.
        offset: (2,) in float64, how far the points are from the centre, along the rows and the columns.
        relative: 1 for ``offset`` in cells, 0 for pixels.
        reduce: "max" or "average".

    Returns:
        (N, C, *size).
    """
    lines = [_positions(x.shape[2 + axis], size[axis], offset[axis], relative) for axis in (0, 1)]
    rows = [_interpolated(x, position, 2) for position in lines[0]]
    points = [_interpolated(row, position, 3) for row in rows for position in lines[1]]
    if reduce == "average":
        return 0.25 * (points[0] + points[1] + points[2] + points[3])
    return torch.maximum(torch.maximum(points[0], points[1]), torch.maximum(points[2], points[3]))


def _positions(n: int, s: Tensor, c: Tensor, relative: int) -> tuple[Tensor, Tensor]:
    """Where both points of every cell are along an axis of length n."""
    middle = torch.arange(int(s), dtype=torch.float64, device=s.device) + 0.5
    if relative:
        both = (((middle - c) * n - 0.5 * s) / s, ((middle + c) * n - 0.5 * s) / s)
    else:
        centre = (middle * n - 0.5 * s) / s
        both = (centre - c, centre + c)
    return both[0].clamp(0, n - 1), both[1].clamp(0, n - 1)


def _interpolated(x: Tensor, position: Tensor, axis: int) -> Tensor:
    below = position.detach().floor()
    share = (position - below).to(x.dtype).reshape([-1 if a == axis else 1 for a in range(4)])
    index = below.long()
    low, high = (x.index_select(axis, i) for i in (index, (index + 1).clamp(max=x.shape[axis] - 1)))
    # Only non-finite neighbours are dropped: a finite one of weight 0 still tells the position where to move.
    unseen = (share == 0) & ~(low.isfinite() & high.isfinite())
    return low * (1 - share) + high.masked_fill(unseen, 0.0) * share


def onnx_form(op: Body, x: ir.Value, size: ir.Value, offset: ir.Value, *, relative: int, reduce: str) -> ir.Value:
    # Rows and columns first: a runtime gathers whole pieces of memory then, and not cell by cell.
    turned = op.Transpose(x, perm=TURN)
    lines = [_position_nodes(op, turned, size, offset, axis, relative) for axis in (0, 1)]
    rows = [_interpolated_node(op, turned, position, 0) for position in lines[0]]
    points = [_interpolated_node(op, row, position, 1) for row in rows for position in lines[1]]
    y = op.Mul(op.Sum(*points), op.number(0.25)) if reduce == "average" else op.Max(*points)
    return op.Transpose(y, perm=TURN)


def _position_nodes(
    op: Body, x: ir.Value, size: ir.Value, offset: ir.Value, axis: int, relative: int
) -> list[ir.Value]:
    half, zero = (op.constant(np.array(value, np.float64)) for value in (0.5, 0.0))
    n = op.cast(_length(op, x, axis), ir.DataType.DOUBLE)
    s, c = (op.Slice(value, op.ints(axis), op.ints(axis + 1), op.ints(0)) for value in (size, offset))
    count = op.Squeeze(op.cast(s, ir.DataType.INT64), op.ints(0))
    index = op.Range(op.constant(np.array(0)), count, op.constant(np.array(1)))
    middle = op.Add(op.cast(index, ir.DataType.DOUBLE), half)
    last, shift = op.Sub(n, op.constant(np.array(1.0))), op.Mul(half, s)
    if relative:
        both = [op.Div(op.Sub(op.Mul(m, n), shift), s) for m in (op.Sub(middle, c), op.Add(middle, c))]
    else:
        centre = op.Div(op.Sub(op.Mul(middle, n), shift), s)
        both = [op.Sub(centre, c), op.Add(centre, c)]
    return [op.Min(op.Max(position, zero), last) for position in both]


def _interpolated_node(op: Body, x: ir.Value, position: ir.Value, axis: int) -> ir.Value:
    below = op.Floor(position)
    shape = op.ints(*(-1 if a == axis else 1 for a in range(4)))
    share = op.Reshape(op.cast(op.Sub(position, below), op.dtype), shape)
    index = op.cast(below, ir.DataType.INT64)
    last = op.Sub(_length(op, x, axis), op.ints(1))
    low, high = (op.Gather(x, i, axis=axis) for i in (index, op.Min(op.Add(index, op.ints(1)), last)))
    mixed = op.Add(op.Mul(low, op.Sub(op.number(1.0), share)), op.Mul(high, share))
    return op.Where(op.Equal(share, op.number(0.0)), low, mixed)


def _length(op: Body, x: ir.Value, axis: int) -> ir.Value:
    return op.Slice(op.Shape(x), op.ints(axis), op.ints(axis + 1), op.ints(0))


def output_shape(x: Tensor, size: Tensor, offset: Tensor, *, relative: int, reduce: str) -> Sequence[int]:
    """Sizes that only the running graph will know."""
    lengths = size.long().tolist()
    for length in lengths:
        torch._check(length >= 1)
    return (*x.shape[:2], *lengths)


query_pool = Operator("QueryPool", torch_form, onnx_form, output_shape=output_shape, widen=False)
