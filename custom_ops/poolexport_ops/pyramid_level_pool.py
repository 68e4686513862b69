"""PyramidLevelPool: one level of a spatial pyramid, n by n bins, by the rules that are not adaptive bins.

    window_stride   n windows of ceil(a / n) cells every floor(a / n), for an axis of a cells
    caffe           n windows of k = ceil(a / n) cells every k, from -p on, p = (n k - a + 1) / 2 rounded down
    sppnet          cells floor(i / n a) to ceil((i + 1) / n a) - 1 in float32, and the maximum begins at 0

An average divides by the cells of a window; caffe counts its pads. Where window_stride gives another number of windows
than n, or caffe a pad as long as the window, there is no answer: the torch form raises, and the graph points its
windows outside of the map, which stops a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._regions import Regions, along, largest_of_regions, length

#: Farther than any map is long.
OUTSIDE = 2**40


def windows(rule: str, n: int, cells: int) -> list[tuple[int, int]]:
    """First cell and the cell after the last of every window of a level, pads left out.

    Raises:
        ValueError: the rule gives no n windows on an axis of this length.

    Example:
        >>> windows("window_stride", 3, 7), windows("caffe", 2, 5), windows("sppnet", 5, 25)[2]
        ([(0, 3), (2, 5), (4, 7)], [(0, 2), (2, 5)], (10, 16))
    """
    longest = -(-cells // n)
    if rule == "sppnet":
        edges = np.arange(n + 1, dtype=np.float32) / np.float32(n) * np.float32(cells)
        return [(int(np.floor(a)), int(np.ceil(b))) for a, b in itertools.pairwise(edges)]
    if rule == "caffe":
        pad = (n * longest - cells + 1) // 2
        if pad >= longest:
            raise ValueError(
                f"{n} bins by the rule 'caffe' need {pad} pads on both sides of {cells} cells, which is as long as a "
                f"window of {longest}; choose a lower level, or bins='adaptive'"
            )
        return [(max(i * longest - pad, 0), min((i + 1) * longest - pad, cells)) for i in range(n)]
    stride = cells // n
    found = (cells - longest) // stride + 1 if stride else 0
    if found != n:
        raise ValueError(
            f"windows of {longest} cells every {stride} on {cells} cells make {found} bins, not {n}; choose another "
            "level, or bins='adaptive'"
        )
    return [(i * stride, i * stride + longest) for i in range(n)]


def torch_form(x: Tensor, *, bins: int, rule: str, reduce: str) -> Tensor:
    """The largest cell, or the mean, of every bin.

    Args:
        x: (N, C, H, W).
        bins: n, for n by n bins.
        rule: "window_stride", "caffe" or "sppnet".
        reduce: "max" or "average".

    Returns:
        (N, C, n, n).
    """
    y = x if reduce == "max" else x.double()
    for axis in (2, 3):
        cut = [y.narrow(axis, first, end - first) for first, end in windows(rule, bins, x.shape[axis])]
        if reduce == "max":
            y = torch.cat([part.amax(axis, keepdim=True) for part in cut], axis)
        else:
            sums = torch.cat([part.sum(axis, keepdim=True) for part in cut], axis)
            y = sums / -(-x.shape[axis] // bins)
    return y.maximum(y.new_zeros(())) if rule == "sppnet" else y.to(x.dtype)


def onnx_form(op: Body, x: ir.Value, *, bins: int, rule: str, reduce: str) -> ir.Value:
    regions = {axis: _regions(op, x, axis, bins, rule) for axis in (0, 1)}
    if reduce == "max":
        y = largest_of_regions(op, x, regions, 2)
        return op.Max(y, op.number(0.0)) if rule == "sppnet" else y
    y = op.cast(x, ir.DataType.DOUBLE)
    for axis, each in regions.items():
        taps, new = each.taps(op)
        cells = op.Where(along(op, new, 2, axis), op.Gather(y, taps, axis=2 + axis), op.constant(np.array(0.0)))
        divisor = op.cast(_longest(op, x, axis, bins), ir.DataType.DOUBLE)
        y = op.Div(op.ReduceSum(cells, op.ints(3 + axis), keepdims=0), divisor)
    return op.cast(y, op.dtype)


def _regions(op: Body, x: ir.Value, axis: int, bins: int, rule: str) -> Regions:
    cells, whole = length(op, x, axis), op.ints(*range(bins))
    if rule == "sppnet":
        shares = np.arange(bins + 1, dtype=np.float32) / np.float32(bins)
        edges = op.Mul(op.constant(shares), op.cast(cells, ir.DataType.FLOAT))
        first = op.Floor(op.Slice(edges, op.ints(0), op.ints(bins), op.ints(0)))
        end = op.Ceil(op.Slice(edges, op.ints(1), op.ints(bins + 1), op.ints(0)))
        return Regions(op.cast(first, ir.DataType.INT64), op.cast(end, ir.DataType.INT64))
    longest = _longest(op, x, axis, bins)
    if rule == "caffe":
        pad = op.Div(op.Add(op.Sub(op.Mul(longest, op.ints(bins)), cells), op.ints(1)), op.ints(2))
        first = op.Sub(op.Mul(whole, longest), pad)
        first, end = op.Max(first, op.ints(0)), op.Min(op.Add(first, longest), cells)
        possible = op.Less(pad, longest)
    else:
        stride = op.Div(cells, op.ints(bins))
        first = op.Mul(whole, stride)
        end = op.Add(first, longest)
        found = op.Add(op.Div(op.Sub(cells, longest), op.Max(stride, op.ints(1))), op.ints(1))
        possible = op.And(op.Equal(found, op.ints(bins)), op.Greater(stride, op.ints(0)))
    away = op.Where(possible, op.ints(0), op.ints(OUTSIDE))
    return Regions(op.Add(first, away), op.Add(end, away))


def _longest(op: Body, x: ir.Value, axis: int, bins: int) -> ir.Value:
    """Cells of a window: the length of the axis by the number of bins, rounded up."""
    return op.Div(op.Add(length(op, x, axis), op.ints(bins - 1)), op.ints(bins))


def output_shape(x: Tensor, *, bins: int, **_: object) -> Sequence[int]:
    return (*x.shape[:2], bins, bins)


pyramid_level_pool = Operator("PyramidLevelPool", torch_form, onnx_form, output_shape=output_shape)
