"""RoiAlignPool: mean of the interpolated samples of every bin of every box.

    start, length = start scale - offset, (end - start) scale        offset 1/2 where aligned, else length at least 1
    b, S = length / P, sampling ratio, or ceil(b) where that is 0
    positions (start + i b) + ((t + 1/2) b) / S       sample t of S of bin i of P, along every axis

A sample is interpolated between four cells; below -1 and above the length of an axis it is 0, and between there and
the map it is the nearest cell. Positions are worked out in the type of the boxes, one rounding after every operation;
weights and sums are in float64. A neighbour of weight 0 adds nothing, whatever it holds.

The samples of a bin form a grid, so the graph interpolates and adds up rows, then columns, one box after the other.
The standard RoiAlign has no kernel in opset 22 and later.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._roi import Boxes, ends_of_boxes, roi_output_shape, row_of


def torch_form(
    x: Tensor,
    rois: Tensor,
    *,
    output_size: Sequence[int],
    spatial_scale: str,
    sampling_ratio: int = 0,
    aligned: int = 0,
) -> Tensor:
    """Mean of the samples of every bin of every box; differentiable in x.

    Args:
        x: (N, C, H, W).
        rois: (R, 5), number of a map and x1, y1, x2, y2.
        output_size: bins per box, rows and columns.
        spatial_scale: cells per unit of the boxes, written out.
        sampling_ratio: samples per bin and axis; 0 for as many as a bin has cells, rounded up.
        aligned: 1 where the centre of the first cell is at 1/2, 0 where it is at 0.

    Returns:
        (R, C, *output_size).
    """
    answers = [x.new_zeros(0, x.shape[1], *output_size)]
    maps = x.unbind(0)
    for box in rois.detach().unsqueeze(1):
        y = maps[int(box[0, 0])].double()
        for axis, bins in enumerate(output_size):
            cells, weights = _taps(box, axis, bins, x.shape[2 + axis], spatial_scale, sampling_ratio, aligned)
            picked = y.index_select(1 + axis, cells.flatten()).unflatten(1 + axis, cells.shape)
            shares = weights.view(*weights.shape, *(1,) * (1 - axis))
            y = torch.where(shares == 0, 0.0, picked * shares).sum(2 + axis)
        answers.append(y.to(x.dtype).unsqueeze(0))
    return torch.cat(answers)


def _taps(box: Tensor, axis: int, bins: int, cells: int, scale: str, ratio: int, aligned: int) -> tuple[Tensor, Tensor]:
    """Cells that the samples of every bin of a box lie between, and their weights in its mean: two of (bins, T)."""
    start, end = (ends_of_boxes(box, axis) * box.new_tensor(float(scale)) - 0.5 * aligned).unbind(1)
    length = end - start if aligned else (end - start).clamp(min=1)
    size = length / bins
    count = ratio or int(size.ceil())
    ahead = (torch.arange(max(1, count), device=box.device).to(box.dtype) + 0.5) * size / max(1, count)
    position = (start + torch.arange(bins, device=box.device) * size).unsqueeze(1) + ahead
    inside = (position >= -1) & (position <= cells) & (count > 0)
    position = position.clamp(min=0)
    low = position.floor().clamp(max=cells - 1)
    share = torch.where(low >= cells - 1, 0.0, (position - low).double())
    weights = torch.cat([1 - share, share], 1) * inside.repeat(1, 2) / max(1, count)
    return torch.cat([low, (low + 1).clamp(max=cells - 1)], 1).long(), weights


def onnx_form(
    op: Body,
    x: ir.Value,
    rois: ir.Value,
    *,
    output_size: Sequence[int],
    spatial_scale: str,
    sampling_ratio: int = 0,
    aligned: int = 0,
) -> ir.Value:
    boxes = Boxes(op, x, rois, spatial_scale)
    axes = [_Axis(boxes, axis, bins, sampling_ratio, aligned) for axis, bins in enumerate(output_size)]
    # Channels last: Gather then copies all channels of a cell at once.
    maps = op.Transpose(x, perm=[0, 2, 3, 1])

    def write(inner: Body, number: ir.Value) -> ir.Value:
        batch = inner.Unsqueeze(row_of(inner, boxes.maps, number), inner.ints(0))
        begins, ends, taps = [batch], [inner.Add(batch, inner.ints(1))], []
        for axis in axes:
            cells, weights = axis.taps(inner, number)
            begins.append(inner.Reshape(inner.ReduceMin(cells, keepdims=0), inner.ints(1)))
            ends.append(inner.Add(inner.Reshape(inner.ReduceMax(cells, keepdims=0), inner.ints(1)), inner.ints(1)))
            taps.append((inner.Sub(cells, begins[-1]), weights))
        part = inner.Slice(maps, inner.Concat(*begins, axis=0), inner.Concat(*ends, axis=0), inner.ints(0, 1, 2))
        y = inner.cast(part, ir.DataType.DOUBLE)
        zero = inner.constant(np.array(0.0))
        for place, (cells, weights) in enumerate(taps):
            shares = inner.Unsqueeze(weights, inner.ints(*range(2, 4 - place)))
            parts = inner.Mul(inner.Gather(y, cells, axis=1 + place), shares)
            parts = inner.Where(inner.Equal(shares, zero), zero, parts)
            y = inner.ReduceSum(parts, inner.ints(2 + place), keepdims=0)
        return inner.cast(y, op.dtype)

    return boxes.each(write, output_size, boxes.channels())


class _Axis:
    """Samples of all boxes of a graph along one axis."""

    def __init__(self, boxes: Boxes, axis: int, bins: int, ratio: int, aligned: int) -> None:
        op = boxes.op
        ends = op.Mul(boxes.ends(axis), boxes.scale)
        start, end = boxes.halves(op.Sub(ends, boxes.number(0.5)) if aligned else ends)
        length = op.Sub(end, start)
        self.boxes = boxes
        #: Cells per bin, (R, 1), and where the bins begin, (R, bins).
        self.size = op.Div(length if aligned else op.Max(length, boxes.number(1.0)), boxes.number(bins))
        self.begins = op.Add(start, op.Mul(boxes.number(range(bins)), self.size))
        counted = op.cast(op.Ceil(self.size), ir.DataType.INT64)
        self.counts = op.Add(op.Mul(counted, op.ints(0)), op.ints(ratio)) if ratio else counted
        self.end = op.Sub(boxes.cells(axis), op.ints(1))

    def taps(self, op: Body, number: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Cells that the samples of every bin lie between, and their weights in its mean: two of (bins, T)."""
        dtype, value = self.boxes.dtype, self.boxes.number
        wanted = row_of(op, self.counts, number)
        count = op.Max(wanted, op.ints(1))
        turns = op.cast(op.Range(_scalar(op, 0), op.Squeeze(count), _scalar(op, 1)), dtype)
        ahead = op.Mul(op.Add(turns, value(0.5)), row_of(op, self.size, number))
        ahead = op.Div(ahead, op.cast(count, dtype))
        position = op.Add(op.Unsqueeze(row_of(op, self.begins, number), op.ints(1)), ahead)
        end = op.cast(self.end, dtype)
        inside = op.And(op.GreaterOrEqual(position, value(-1.0)), op.LessOrEqual(position, op.Add(end, value(1.0))))
        position = op.Max(position, value(0.0))
        low = op.Min(op.Floor(position), end)
        share = op.Where(op.GreaterOrEqual(low, end), value(0.0), op.Sub(position, low))
        share = op.cast(share, ir.DataType.DOUBLE)
        parts = op.Concat(op.Sub(op.constant(np.array([1.0])), share), share, axis=1)
        inside = op.And(op.Concat(inside, inside, axis=1), op.Greater(wanted, op.ints(0)))
        weights = op.Div(op.Where(inside, parts, op.constant(np.array([0.0]))), op.cast(count, ir.DataType.DOUBLE))
        cell = op.cast(low, ir.DataType.INT64)
        return op.Concat(cell, op.Min(op.Add(cell, op.ints(1)), self.end), axis=1), weights


def _scalar(op: Body, value: int) -> ir.Value:
    return op.constant(np.array(value))


roi_align_pool = Operator("RoiAlignPool", torch_form, onnx_form, output_shape=roi_output_shape)
