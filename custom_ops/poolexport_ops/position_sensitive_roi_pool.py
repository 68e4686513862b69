"""PositionSensitiveRoiPool: every bin of a box has channels of its own; their mean over the cells of the bin.

    y[c, i, j] = mean of channel (c P_h + i) P_w + j over the cells of bin (i, j); 0 for a bin without cells

Bins are those of ``_roi.py``. Sums are in float64; a cell outside of a bin adds nothing, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._roi import R_FCN, TORCHVISION, Boxes, bins_of_boxes, row_of, taps_of_bins, taps_of_run

RULES = {"torchvision": TORCHVISION, "r-fcn": R_FCN}


def output_shape(x: Tensor, rois: Tensor, *, output_size: Sequence[int], **_: object) -> Sequence[int]:
    rows, columns = output_size
    return (rois.shape[0], x.shape[1] // (rows * columns), rows, columns)


def torch_form(
    x: Tensor, rois: Tensor, *, output_size: Sequence[int], spatial_scale: str, rule: str = "torchvision"
) -> Tensor:
    """Mean of every bin of every box over the bin's own channels; differentiable in x.

    Args:
        x: (N, C, H, W), C a multiple of the number of bins.
        rois: (R, 5), number of a map and x1, y1, x2, y2.
        output_size: bins per box, rows and columns.
        spatial_scale: cells per unit of the boxes, written out.
        rule: "torchvision" or "r-fcn", how a box is laid over cells.

    Returns:
        (R, C / bins, *output_size).
    """
    spans = [
        bins_of_boxes(rois, axis, bins, x.shape[2 + axis], spatial_scale, RULES[rule])
        for axis, bins in enumerate(output_size)
    ]
    row_bin, column_bin = (torch.arange(bins, device=x.device) for bins in output_size)
    maps = x.unflatten(1, (-1, *output_size)).unbind(0) if len(x) else ()
    answers = [x.new_zeros(0, *output_shape(x, rois, output_size=output_size)[1:])]
    for number, batch in enumerate(rois[:, 0].long().tolist()):
        (rows, new_rows), (columns, new_columns) = (
            taps_of_bins(first[number], after[number], x.shape[2 + axis]) for axis, (first, after) in enumerate(spans)
        )
        cells = maps[batch][
            :, row_bin.view(-1, 1, 1, 1), column_bin.view(-1, 1, 1), rows[:, None, :, None], columns[:, None]
        ]
        new = new_rows[:, None, :, None] & new_columns[:, None]
        total = torch.where(new, cells.double(), 0.0).sum((-2, -1))
        answers.append((total / new.sum((-2, -1)).clamp(min=1)).to(x.dtype).unsqueeze(0))
    return torch.cat(answers)


def onnx_form(
    op: Body, x: ir.Value, rois: ir.Value, *, output_size: Sequence[int], spatial_scale: str, rule: str = "torchvision"
) -> ir.Value:
    boxes = Boxes(op, x, rois, spatial_scale)
    spans = [boxes.bins(axis, bins, RULES[rule]) for axis, bins in enumerate(output_size)]
    edges = [span.inside(op, boxes.cells(axis)) for axis, span in enumerate(spans)]
    counts = [span.counts(op) for span in spans]
    height, width = (boxes.cells(axis) for axis in (0, 1))
    rows, columns = output_size
    groups = op.Div(boxes.channels(), op.ints(rows * columns))
    # One row for every cell of every bin's channels, which holds that cell for all classes.
    in_map = op.Mul(op.Mul(height, width), op.ints(rows * columns))
    batch = op.Shape(x, start=0, end=1)
    split = op.Reshape(x, op.Concat(batch, groups, in_map, axis=0), allowzero=1)
    table = op.Reshape(
        op.Transpose(split, perm=[0, 2, 1]), op.Concat(op.Mul(batch, in_map), groups, axis=0), allowzero=1
    )
    plane = op.constant(np.arange(rows * columns).reshape(rows, columns, 1, 1))

    def write(inner: Body, number: ir.Value) -> ir.Value:
        (row, new_row), (column, new_column) = (
            taps_of_run(inner, row_of(inner, first, number), row_of(inner, last, number)) for first, last in edges
        )
        row, new_row = (inner.Unsqueeze(each, inner.ints(1, 3)) for each in (row, new_row))
        column, new_column = (inner.Unsqueeze(each, inner.ints(0, 2)) for each in (column, new_column))
        place = inner.Add(inner.Mul(inner.Add(inner.Mul(plane, height), row), width), column)
        place = inner.Add(place, inner.Mul(row_of(inner, boxes.maps, number), in_map))
        cells = inner.cast(inner.Gather(table, place, axis=0), ir.DataType.DOUBLE)
        new = inner.Unsqueeze(inner.And(new_row, new_column), inner.ints(4))
        own = inner.Where(new, cells, inner.constant(np.array(0.0)))
        return inner.ReduceSum(own, inner.ints(2, 3), keepdims=0)

    area = op.Mul(op.Unsqueeze(counts[0], op.ints(1, 3)), op.Unsqueeze(counts[1], op.ints(1, 2)))
    divisor = op.cast(op.Max(area, op.ints(1)), ir.DataType.DOUBLE)
    means = op.cast(op.Div(boxes.each(write, output_size, groups), divisor), op.dtype)
    return op.Where(op.Greater(area, op.ints(0)), means, op.number(0.0))


position_sensitive_roi_pool = Operator("PositionSensitiveRoiPool", torch_form, onnx_form, output_shape=output_shape)
