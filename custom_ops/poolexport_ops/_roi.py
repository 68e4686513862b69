"""Boxes on a map: which cells of an axis belong to which bin of a box, and walking over the boxes of a graph.

Where a bin begins and ends is decided by products that are rounded, so their precision and order belong to the
definition. All of it is worked out in the type of the boxes, one rounding after every product, quotient and sum:

    s, e = round(start scale), round(end scale)      halves away from zero
    length = max(e - s + 1, 1)                       "torchvision" position-sensitive pooling: max(e - s, 1)
    bin i of P: cells floor(i (length / P)) + s  to  ceil((i + 1) (length / P)) + s - 1, cut off at the map

R-FCN rounds before it scales: s, e = round(start) scale, (round(end) + 1) scale; length = max(e - s, 0.1); bin i is
floor(i (length / P) + s) to ceil((i + 1) (length / P) + s) - 1.

The boxes are (R, 5): number of the map in the batch, x1, y1, x2, y2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._loop import each


@dataclass(frozen=True)
class Rule:
    """How a box is laid over cells.

    Args:
        extra: cells that a box is longer than the distance of its ends.
        unused: cells at the end of every axis that no bin reaches.
        rounds_first: whether ends are rounded before they are scaled.
    """

    extra: int = 0
    unused: int = 0
    rounds_first: bool = False


MAX = Rule(extra=1)
TORCHVISION = Rule(unused=1)
R_FCN = Rule(rounds_first=True)


def half_away(values: Tensor) -> Tensor:
    """Nearest whole numbers, halves away from zero.

    Example:
        >>> half_away(torch.tensor([0.49999997, 0.5, 2.5, -2.5]))
        tensor([ 0.,  1.,  3., -3.])
    """
    below = values.abs().floor()
    return values.sign() * (below + (values.abs() - below >= 0.5))


def ends_of_boxes(rois: Tensor, axis: int) -> Tensor:
    """Both ends of every box along a spatial axis, (R, 2)."""
    return rois[:, [2 - axis, 4 - axis]]


def bins_of_boxes(rois: Tensor, axis: int, bins: int, cells: int, scale: str, rule: Rule) -> tuple[Tensor, Tensor]:
    """First cell of every bin of every box along a spatial axis, and the cell after its last: two of (R, bins)."""
    ends = ends_of_boxes(rois, axis)
    factor, whole = rois.new_tensor(float(scale)), rois.new_tensor(range(bins + 1))
    if rule.rounds_first:
        start, end = (half_away(ends) + rois.new_tensor([0.0, 1.0])).mul(factor).unbind(1)
        steps = whole * ((end - start).maximum(rois.new_tensor(0.1)) / bins).unsqueeze(1) + start.unsqueeze(1)
        shift = torch.zeros_like(start, dtype=torch.int64)
    else:
        start, end = half_away(ends * factor).long().unbind(1)
        length = (end - start + rule.extra).clamp(min=1).to(rois.dtype)
        steps, shift = whole * (length / bins).unsqueeze(1), start
    first = steps[:, :-1].floor().long() + shift.unsqueeze(1)
    after = steps[:, 1:].ceil().long() + shift.unsqueeze(1)
    return first.clamp(0, cells - rule.unused), after.clamp(0, cells - rule.unused)


def taps_of_bins(first: Tensor, after: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Cells of the bins of one box and whether each is a new one of its bin: two of (bins, T)."""
    ahead = first.unsqueeze(1) + torch.arange(max(1, int((after - first).max())), device=first.device)
    new = ahead < after.unsqueeze(1)
    return ahead.minimum((after.unsqueeze(1) - 1).maximum(first.unsqueeze(1))).clamp(max=cells - 1), new


@dataclass(frozen=True)
class Bins:
    """Bins of all boxes along one axis of a graph, (R, bins) in int64: the first cell, and the cell after the last."""

    first: ir.Value
    after: ir.Value

    def inside(self, op: Body, cells: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The first and the last cell of every bin; those of an empty one are some cell of the map."""
        end = op.Sub(cells, op.ints(1))
        first = op.Min(self.first, end)
        return first, op.Max(op.Sub(op.Min(self.after, cells), op.ints(1)), first)

    def counts(self, op: Body) -> ir.Value:
        """Cells per bin."""
        return op.Max(op.Sub(self.after, self.first), op.ints(0))


class Boxes:
    """The boxes of a graph: their maps, and the bins that they are cut into.

    Args:
        op: the body to write.
        x: the maps, (N, C, H, W).
        rois: the boxes, (R, 5); arithmetic is in their type.
        scale: cells per unit of the boxes, written out.
    """

    def __init__(self, op: Body, x: ir.Value, rois: ir.Value, scale: str) -> None:
        self.op = op
        self.x = x
        self.rois = rois
        self.dtype = rois.dtype or op.dtype
        self.scale = self.number(float(scale))
        batch = op.Range(op.constant(np.array(0)), op.Squeeze(op.Shape(x, start=0, end=1)), op.constant(np.array(1)))
        numbers = op.cast(op.Gather(rois, op.constant(np.array(0)), axis=1), ir.DataType.INT64)
        #: Map of every box; a number outside of the batch stops the run here.
        self.maps = op.Gather(batch, numbers, axis=0)

    def number(self, value: float | Sequence[float]) -> ir.Value:
        """A constant in the type of the boxes."""
        return self.op.constant(np.array(value, self.dtype.numpy()))

    def cells(self, axis: int) -> ir.Value:
        """Length of a spatial axis of the maps, as a vector of one int64."""
        return self.op.Shape(self.x, start=2 + axis, end=3 + axis)

    def ends(self, axis: int) -> ir.Value:
        """Both ends of every box along a spatial axis, (R, 2)."""
        return self.op.Gather(self.rois, self.op.ints(2 - axis, 4 - axis), axis=1)

    def half_away(self, values: ir.Value) -> ir.Value:
        """Nearest whole numbers, halves away from zero; Round takes them to the even neighbour."""
        op = self.op
        size = op.Abs(values)
        below = op.Floor(size)
        up = op.cast(op.GreaterOrEqual(op.Sub(size, below), self.number(0.5)), self.dtype)
        return op.Mul(op.Sign(values), op.Add(below, up))

    def bins(self, axis: int, count: int, rule: Rule) -> Bins:
        """The bins of every box along a spatial axis."""
        op = self.op
        whole = self.number(range(count + 1))
        if rule.rounds_first:
            ends = op.Mul(op.Add(self.half_away(self.ends(axis)), self.number([0.0, 1.0])), self.scale)
            start, end = self.halves(ends)
            size = op.Div(op.Max(op.Sub(end, start), self.number(0.1)), self.number(count))
            steps, shift = op.Add(op.Mul(whole, size), start), op.ints(0)
        else:
            ends = op.cast(self.half_away(op.Mul(self.ends(axis), self.scale)), ir.DataType.INT64)
            shift, end = self.halves(ends)
            length = op.Max(op.Add(op.Sub(end, shift), op.ints(rule.extra)), op.ints(1))
            steps = op.Mul(whole, op.Div(op.cast(length, self.dtype), self.number(count)))
        limit = op.Sub(self.cells(axis), op.ints(rule.unused)) if rule.unused else self.cells(axis)
        first = op.Floor(op.Slice(steps, op.ints(0), op.ints(count), op.ints(1)))
        after = op.Ceil(op.Slice(steps, op.ints(1), op.ints(count + 1), op.ints(1)))
        cut = [op.Add(op.cast(side, ir.DataType.INT64), shift) for side in (first, after)]
        return Bins(*(op.Min(op.Max(side, op.ints(0)), limit) for side in cut))

    def halves(self, pairs: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Both columns of (R, 2), as (R, 1) each."""
        return self.op.Gather(pairs, self.op.ints(0), axis=1), self.op.Gather(pairs, self.op.ints(1), axis=1)

    def channels(self) -> ir.Value:
        """Number of channels of the maps, as a vector of one int64."""
        return self.op.Shape(self.x, start=1, end=2)

    def each(self, write: Callable[[Body, ir.Value], ir.Value], size: Sequence[int], channels: ir.Value) -> ir.Value:
        """What ``write(body, number)`` answers for every box, the channels last, as (R, channels, *size)."""
        op = self.op
        boxes = op.Shape(self.rois, start=0, end=1)
        answers = each(op, op.Squeeze(boxes), write)
        shape = op.Concat(boxes, op.ints(*size), channels, axis=0)
        return op.Transpose(op.Reshape(answers, shape, allowzero=1), perm=[0, 3, 1, 2])


def row_of(op: Body, table: ir.Value, number: ir.Value) -> ir.Value:
    """One row of a table, by its number, a scalar."""
    return op.Gather(table, number, axis=0)


def taps_of_run(op: Body, first: ir.Value, last: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Cells of the runs first ... last, both (bins,), and whether each is a new one of its run: two of (bins, T)."""
    widest = op.Add(op.ReduceMax(op.Sub(last, first), keepdims=0), op.constant(np.array(1)))
    steps = op.Range(op.constant(np.array(0)), widest, op.constant(np.array(1)))
    ahead, end = op.Add(op.Unsqueeze(first, op.ints(1)), steps), op.Unsqueeze(last, op.ints(1))
    return op.Min(ahead, end), op.LessOrEqual(ahead, end)


def roi_output_shape(x: Tensor, rois: Tensor, *, output_size: Sequence[int], **_: object) -> Sequence[int]:
    """(R, C, *output_size)."""
    return (rois.shape[0], x.shape[1], *output_size)
