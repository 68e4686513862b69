"""Regions: along every axis, one run of cells per output; how long the runs are, only the input decides.

Region i of an axis holds its cells ``first_i ... end_i - 1``. Adaptive bins and fractional regions are both of this
kind. A graph cannot know the widest region before it runs, so it gathers all cells of all regions at once: tap t of
region i is the cell ``min(first_i + t, end_i - 1)``. The regions of an axis differ by a cell or two in length, so the
gathered map is hardly larger than the map itself, and no cell outside a region is ever touched: one NaN spoils the
regions it lies in and no other, which neither an integral image nor a matrix of weights can promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body, largest

Sizes: TypeAlias = "int | Sequence[int | None] | None"

LAST_POSITION = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Regions:
    """The regions of one axis: int64 tensors of a graph, one entry per output.

    Args:
        first: first cell of every region, (O,), or (N, C, O) where every plane has its own.
        end: the cell after its last one.
        width: cells of every region where that is one number and known before the graph runs, else 0.
        per_plane: whether every plane has its own regions.
    """

    first: ir.Value
    end: ir.Value
    width: int = 0
    per_plane: bool = False

    def lengths(self, op: Body) -> ir.Value:
        """Cells per region."""
        return op.Sub(self.end, self.first)

    def taps(self, op: Body) -> tuple[ir.Value, ir.Value]:
        """Cells of every region and whether each is a new one, both (..., O, T); a short region repeats its last."""
        if self.width:
            steps = op.ints(*range(self.width))
        else:
            widest = op.ReduceMax(self.lengths(op), keepdims=0)
            steps = op.Range(op.constant(np.array(0)), widest, op.constant(np.array(1)))
        ahead = op.Add(op.Unsqueeze(self.first, op.ints(-1)), steps)
        last = op.Unsqueeze(op.Sub(self.end, op.ints(1)), op.ints(-1))
        return op.Min(ahead, last), op.LessOrEqual(ahead, last)

    def pick(self, op: Body, x: ir.Value, cells: ir.Value, axis: int, rank: int, *, taps: int = 0) -> ir.Value:
        """The given cells of a spatial axis of ``x``; their own axes take its place: O, and T where ``taps`` is 1."""
        if not self.per_plane:
            return op.Gather(x, cells, axis=2 + axis)
        others = [2 + a for a in range(rank) if a != axis]
        if axis:
            x = op.Transpose(x, perm=[0, 1, 2 + axis, *others])
        picked = op.GatherND(x, op.Unsqueeze(cells, op.ints(-1)), batch_dims=2)
        if not axis:
            return picked
        own, rest = [2, 3][: 1 + taps], [3 + taps + a for a in range(rank - 1)]
        return op.Transpose(picked, perm=[0, 1, *rest[:axis], *own, *rest[axis:]])


def bins(op: Body, x: ir.Value, axis: int, size: int) -> Regions:
    """The adaptive bins of a spatial axis of length n: cells floor(i n / size) to ceil((i + 1) n / size) - 1."""
    n = length(op, x, axis)
    begins = op.Mul(op.ints(*range(size)), n)
    ends = op.Add(op.Mul(op.ints(*range(1, size + 1)), n), op.ints(size - 1))
    return Regions(op.Div(begins, op.ints(size)), op.Div(ends, op.ints(size)))


def length(op: Body, x: ir.Value, axis: int) -> ir.Value:
    """Length of a spatial axis, as a vector of one int64."""
    return op.Shape(x, start=2 + axis, end=3 + axis)


def along(op: Body, values: ir.Value, rank: int, axis: int) -> ir.Value:
    """``values``, whose last axis belongs to a spatial axis, with axes of length 1 for the spatial axes after it."""
    after = rank - 1 - axis
    return op.Unsqueeze(values, op.ints(*range(-after, 0))) if after else values


def largest_of_regions(op: Body, x: ir.Value, regions: Mapping[int, Regions], rank: int) -> ir.Value:
    """Largest cell of every region of a map; NaN where a region holds one. Axes without regions are kept."""
    if all(along_axis.width for along_axis in regions.values()):
        for axis, along_axis in regions.items():
            cells = [op.Add(along_axis.first, op.ints(tap)) for tap in range(along_axis.width)]
            x = largest(op, [along_axis.pick(op, x, tap, axis, rank) for tap in cells])
        return x
    # ReduceMax drops NaN: flags go the same way beside the cells.
    best, nan = x, op.cast(op.IsNaN(x), ir.DataType.UINT8)
    for axis, along_axis in regions.items():
        taps, _ = along_axis.taps(op)
        best, nan = (
            op.ReduceMax(along_axis.pick(op, values, taps, axis, rank, taps=1), op.ints(3 + axis), keepdims=0)
            for values in (best, nan)
        )
    return op.Where(op.cast(nan, ir.DataType.BOOL), op.number(float("nan")), best)


def first_largest_of_regions(
    op: Body, x: ir.Value, regions: Mapping[int, Regions], rank: int
) -> tuple[ir.Value, ir.Value]:
    """Largest cell of every region and its position in its plane: the first of equal cells, the last NaN.

    Every cell carries a claim: its position, or -1 - position where it is NaN. Of the cells that equal the largest,
    or are NaN, the smallest claim is the first position, or belongs to the last NaN; it need not be known whether the
    largest was right beside a NaN.
    """
    position = _positions(op, x, rank)
    best, claim = x, op.Where(op.IsNaN(x), op.Sub(op.ints(-1), position), position)
    for axis, along_axis in regions.items():
        taps, _ = along_axis.taps(op)
        cells, claims = (along_axis.pick(op, values, taps, axis, rank, taps=1) for values in (best, claim))
        best = op.ReduceMax(cells, op.ints(3 + axis), keepdims=1)
        wins = op.Or(op.Equal(cells, best), op.Less(claims, op.ints(0)))
        claim = op.ReduceMin(op.Where(wins, claims, op.ints(LAST_POSITION)), op.ints(3 + axis), keepdims=0)
        best = op.Squeeze(best, op.ints(3 + axis))
    nan = op.Less(claim, op.ints(0))
    positions = op.Where(nan, op.Sub(op.ints(-1), claim), claim)
    return op.Where(nan, op.number(float("nan")), best), positions


def _positions(op: Body, x: ir.Value, rank: int) -> ir.Value:
    """Row-major position of every cell in its plane, (1, 1, *spatial)."""
    lengths = op.Shape(x, start=2, end=2 + rank)
    count = op.ReduceProd(lengths, op.ints(0), keepdims=0)
    ramp = op.Range(op.constant(np.array(0)), count, op.constant(np.array(1)))
    return op.Reshape(ramp, op.Concat(op.ints(1, 1), lengths, axis=0))


def bins_per_axis(output_size: Sizes, rank: int) -> tuple[int, ...]:
    """``output_size`` as one int per spatial axis, 0 for an axis that is kept.

    Raises:
        ValueError: an entry is neither a positive int nor None, or their number is not ``rank``.
    """
    entries = tuple(output_size) if isinstance(output_size, Sequence) else (output_size,) * rank
    entries = tuple(int(s) if isinstance(s, Integral) and not isinstance(s, bool) else s for s in entries)
    valid = all(size is None or (type(size) is int and 0 < size <= LAST_POSITION) for size in entries)
    if len(entries) != rank or not valid:
        raise ValueError(f"output_size must be a positive int, None, or a tuple of {rank}, got {output_size!r}")
    return tuple(size or 0 for size in entries)


def require_cells(x: Tensor, who: str) -> None:
    """Raise a ValueError where a spatial axis is empty."""
    if not torch.compiler.is_compiling() and 0 in x.shape[2:]:
        raise ValueError(f"there is nothing to pool for {who} in an input of shape {tuple(x.shape)}")
