"""RoiMaxPool: the largest cell of every bin of every box; 0 for a bin without cells.

Bins are those of ``_roi.py``. A NaN makes the bins it lies in NaN, and a bin of nothing but -inf is -inf.

The graph walks over the boxes: of each it cuts out its own part of the map and reduces that along one axis, then along
the other. On 128 boxes of a (1, 256, 38, 50) map that takes 17 to 24 ms on one thread, as the standard MaxRoiPool does.
All boxes at once would take a copy of a row of the map for every row of every box. The standard operator has no kernel
in opset 22 and later, and is float32 only.

ReduceMax drops NaN in onnxruntime, so NaN are counted, by sums of whole numbers over all cells above and to the left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._loop import when
from poolexport_ops._operator import Operator
from poolexport_ops._roi import MAX, Bins, Boxes, bins_of_boxes, roi_output_shape, row_of, taps_of_bins, taps_of_run


def torch_form(x: Tensor, rois: Tensor, *, output_size: Sequence[int], spatial_scale: str) -> Tensor:
    """Largest cell of every bin of every box; the gradient goes to the first of equal cells in row-major order.

    Args:
        x: (N, C, H, W).
        rois: (R, 5), number of a map and x1, y1, x2, y2.
        output_size: bins per box, rows and columns.
        spatial_scale: cells per unit of the boxes, written out.

    Returns:
        (R, C, *output_size).
    """
    spans = [bins_of_boxes(rois, axis, output_size[axis], x.shape[2 + axis], spatial_scale, MAX) for axis in (0, 1)]
    places = rois.new_zeros(rois.shape[0], x.shape[1], *output_size, dtype=torch.int64)
    with torch.no_grad():
        planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(*x.shape[:2], 1, 1) * x.shape[2:].numel()
        channels_last = x.permute(0, 2, 3, 1).contiguous()
        for number, batch in enumerate(rois[:, 0].long().tolist()):
            rows, columns = (
                taps_of_bins(first[number], after[number], x.shape[2 + axis])[0]
                for axis, (first, after) in enumerate(spans)
            )
            places[number] = planes[batch] + _first_largest(channels_last[batch], rows, columns).permute(2, 0, 1)
    (top, bottom), (left, right) = spans
    filled = (bottom > top).unsqueeze(2) & (right > left).unsqueeze(1)
    return torch.where(filled.unsqueeze(1), x.reshape(-1)[places], x.new_zeros(()))


def _first_largest(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Position in its plane of the largest cell of every bin: (H, W, C) to (*bins, C)."""
    top = int(rows.min())
    best, tap = x[top : int(rows.max()) + 1, columns].max(2)
    column = columns[torch.arange(len(columns), device=x.device).view(-1, 1), tap]
    _, tap = best[rows - top].max(1)
    row = rows[torch.arange(len(rows), device=x.device).view(-1, 1, 1), tap]
    return row * x.shape[1] + column.gather(0, row - top)


def onnx_form(op: Body, x: ir.Value, rois: ir.Value, *, output_size: Sequence[int], spatial_scale: str) -> ir.Value:
    boxes = Boxes(op, x, rois, spatial_scale)
    spans = [boxes.bins(axis, count, MAX) for axis, count in enumerate(output_size)]
    flags = op.cast(op.IsNaN(x), ir.DataType.INT32)
    some_nan = op.Greater(op.ReduceSum(flags, keepdims=0), op.constant(np.array(0, np.int32)))
    best = _largest(boxes, spans, output_size)

    def mark(inner: Body) -> ir.Value:
        counts = _sums(inner, flags, boxes.maps, spans)
        found = inner.Greater(counts, inner.constant(np.array(0, np.int32)))
        return inner.Where(found, inner.number(float("nan")), best)

    # A Cast, because the types of values outside are not known inside of a branch.
    marked = when(op, some_nan, mark, lambda inner: inner.cast(best, inner.dtype))
    rows, columns = (op.Greater(span.counts(op), op.ints(0)) for span in spans)
    filled = op.And(op.Unsqueeze(rows, op.ints(1, 3)), op.Unsqueeze(columns, op.ints(1, 2)))
    return op.Where(filled, marked, op.number(0.0))


def _largest(boxes: Boxes, spans: Sequence[Bins], output_size: Sequence[int]) -> ir.Value:
    """Largest cell of every bin, some cell of an empty one: (R, C, *output_size)."""
    # Channels last: Gather then copies, and ReduceMax compares, all channels of a cell at once.
    x, maps = boxes.op.Transpose(boxes.x, perm=[0, 2, 3, 1]), boxes.maps
    edges = [span.inside(boxes.op, boxes.cells(axis)) for axis, span in enumerate(spans)]

    def write(op: Body, number: ir.Value) -> ir.Value:
        batch = op.Unsqueeze(row_of(op, maps, number), op.ints(0))
        begins, ends, taps = [batch], [op.Add(batch, op.ints(1))], []
        for (first, last), count in zip(edges, output_size):
            low, high = row_of(op, first, number), row_of(op, last, number)
            begins.append(op.Slice(low, op.ints(0), op.ints(1)))
            ends.append(op.Add(op.Slice(high, op.ints(count - 1), op.ints(count)), op.ints(1)))
            taps.append(op.Sub(taps_of_run(op, low, high)[0], begins[-1]))
        part = op.Slice(x, op.Concat(*begins, axis=0), op.Concat(*ends, axis=0), op.ints(0, 1, 2))
        rows = op.ReduceMax(op.Gather(part, taps[0], axis=1), op.ints(2), keepdims=0)
        return op.ReduceMax(op.Gather(rows, taps[1], axis=2), op.ints(3), keepdims=0)

    return boxes.each(write, output_size, boxes.channels())


def _sums(op: Body, flags: ir.Value, maps: ir.Value, spans: Sequence[Bins]) -> ir.Value:
    """Sum of every bin of a map of whole numbers, (R, C, *output_size): four corners of its sums from the origin."""
    zero = op.constant(np.array(0, np.int32))
    padded = op.Pad(op.Transpose(flags, perm=[0, 2, 3, 1]), op.ints(0, 1, 1, 0, 0, 0, 0, 0), zero, mode="constant")
    sums = op.CumSum(op.CumSum(padded, op.constant(np.array(1))), op.constant(np.array(2)))
    batch = op.Unsqueeze(maps, op.ints(1, 2, 3))
    (top, bottom), (left, right) = ((span.first, span.after) for span in spans)
    corners = [
        op.GatherND(sums, _indices(op, batch, op.Unsqueeze(row, op.ints(2, 3)), op.Unsqueeze(column, op.ints(1, 3))))
        for row, column in ((bottom, right), (top, left), (top, right), (bottom, left))
    ]
    counts = op.Sub(op.Add(*corners[:2]), op.Add(*corners[2:]))
    return op.Transpose(counts, perm=[0, 3, 1, 2])


def _indices(op: Body, batch: ir.Value, row: ir.Value, column: ir.Value) -> ir.Value:
    """Numbers of maps, rows and columns side by side, (R, *bins, 3)."""
    zero = op.Mul(op.Add(row, column), op.ints(0))
    return op.Concat(*(op.Add(each, zero) for each in (batch, row, column)), axis=3)


roi_max_pool = Operator("RoiMaxPool", torch_form, onnx_form, output_shape=roi_output_shape)
