"""MaxPoolWithIndices: the largest cell of every window, and where it is.

    y = max over the real cells of the window
    indices = row-major position of that cell inside its (n, c) plane: the first of equal cells, the last NaN

The standard MaxPool counts positions over the whole (N, C, H, W) tensor and does not see NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._window import Window

POOLS = {
    1: F.max_pool1d_with_indices,
    2: F.max_pool2d_with_indices,
    3: F.max_pool3d_with_indices,
}


def torch_form(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Largest cell of every window and its position in the plane.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        kernel_shape, strides, pads, dilations: the window, in cells; pads are begin..., then end....

    Returns:
        values and int64 indices, both (N, C, *output); -1 where a window has no real cell.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    pool = POOLS[window.rank]
    values, found = pool(
        window.pad(x, -float("inf")), window.kernel_shape, window.strides, [0] * window.rank, window.dilations
    )
    if not window.padded:
        return values, found
    padded = [n + b + q for n, b, q in zip(x.shape[2:], window.begin, window.end)]
    positions = torch.zeros_like(found)
    scale = 1
    for axis in reversed(range(window.rank)):
        along = found % padded[axis] - window.begin[axis]
        # A window of -inf reports its first pad, where torch reports the first real cell.
        along = torch.where(along < 0, along % window.dilations[axis], along)
        positions += along * scale
        found, scale = found // padded[axis], scale * x.shape[2 + axis]
    real = window.cells(torch.ones_like(x[:1, :1]), 0.0).amax(-1) > 0
    return values, torch.where(real, positions, -1)


def onnx_form(
    op: Body,
    x: ir.Value,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> tuple[ir.Value, ir.Value]:
    window = Window.of(kernel_shape, strides, pads, dilations)
    rank = window.rank
    lengths = op.Slice(op.Shape(x), op.ints(2), op.ints(2 + rank), op.ints(0))
    count = op.ReduceProd(lengths, op.ints(0), keepdims=0)
    ramp = op.Range(op.constant(np.array(0)), count, op.constant(np.array(1)))
    plane = op.Reshape(ramp, op.Concat(op.ints(1, 1), lengths, axis=0))
    positions = _int_cells(op, plane, window)
    cells = op.cells(x, window, -float("inf"))
    best, best_position = cells[0], positions[0]
    for cell, position in zip(cells[1:], positions[1:]):
        real = op.GreaterOrEqual(position, op.constant(np.array(0)))
        better = op.Or(op.Greater(cell, best), op.IsNaN(cell))
        first_real = op.And(real, op.Less(best_position, op.constant(np.array(0))))
        take = op.Or(better, first_real)
        best = op.Where(take, cell, best)
        best_position = op.Where(take, position, best_position)
    return best, op.Expand(best_position, op.Shape(best))


def _int_cells(op: Body, plane: ir.Value, window: Window) -> list[ir.Value]:
    """The plane position held by every cell of every window; -1 on pads."""
    if window.padded:
        pads = op.ints(0, 0, *window.begin, 0, 0, *window.end)
        plane = op.Pad(plane, pads, op.constant(np.array(-1)), mode="constant")
    cells = [plane]
    for axis in range(window.rank):
        cells = [tap for cell in cells for tap in op.taps(cell, window, axis)]
    return cells


max_pool_with_indices = Operator("MaxPoolWithIndices", torch_form, onnx_form, outputs=(None, torch.int64))
