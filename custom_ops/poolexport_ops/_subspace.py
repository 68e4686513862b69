"""What operators on left singular vectors share: samples made safe for a decomposition, packed symmetric matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._scale import power_of_two, power_of_two_node

#: A direction whose singular value is not above this share of the largest is no part of a subspace.
RANK_BOUND = 2.0**-20
#: What becomes of a symmetric matrix: itself, its upper triangle row by row, or column by column.
LAYOUTS = ("matrix", "rows", "columns")


def safe(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, C, L) near 1 in float64, by which power of two it was divided, and which samples hold NaN or infinities."""
    wide = x.double()
    spoilt = ~wide.isfinite().flatten(1).all(1)[:, None, None]
    wide = wide.masked_fill(spoilt, 0.0)
    scale = power_of_two(wide.detach().abs().flatten(1).amax(1)[:, None, None])
    return wide / scale, scale, spoilt


@dataclass(frozen=True)
class SafeNode:
    """The same in a graph, with a sample of zeros in place of an empty batch."""

    op: Body
    x: ir.Value
    scale: ir.Value
    spoilt: ir.Value
    batch: ir.Value

    @classmethod
    def of(cls, body: Body, x: ir.Value) -> SafeNode:
        op = body.wide()
        batch = op.Shape(x, start=0, end=1)
        wide = op.cast(x, ir.DataType.DOUBLE)
        missing = op.Sub(op.ints(1), op.Min(batch, op.ints(1)))
        filler = op.Expand(op.number(0.0), op.Concat(missing, op.Shape(x, start=1), axis=0))
        wide = op.Concat(wide, filler, axis=0)
        stray = op.Not(op.Equal(op.Sub(wide, wide), op.number(0.0)))
        strays = op.ReduceMax(op.cast(stray, ir.DataType.DOUBLE), op.ints(1, 2), keepdims=1)
        spoilt = op.Greater(strays, op.number(0.0))
        wide = op.Where(spoilt, op.number(0.0), wide)
        scale = power_of_two_node(op, op.ReduceMax(op.Abs(wide), op.ints(1, 2), keepdims=1))
        return cls(op, op.Div(wide, scale), scale, spoilt, batch)

    def answer(self, y: ir.Value, dtype: ir.DataType, layout: str = "matrix") -> ir.Value:
        """An answer (B, ., .) in the type of the operator, without the filler, NaN where the sample was spoilt."""
        op = self.op
        y = op.Where(self.spoilt, op.number(float("nan")), y)
        y = op.cast(op.Slice(y, op.ints(0), self.batch, op.ints(0)), dtype)
        return y if layout == "matrix" else _packed(op, y, layout)


def packed(y: Tensor, layout: str) -> Tensor:
    """Symmetric matrices (N, C, C) in a layout: (N, C (C + 1) / 2) but for "matrix"."""
    if layout == "matrix":
        return y
    # A column of the upper triangle is a row of the lower one.
    rows, columns = (torch.triu_indices if layout == "rows" else torch.tril_indices)(*y.shape[1:], device=y.device)
    return y[:, rows, columns]


def packed_shape(batch: int, channels: int, layout: str) -> tuple[int, ...]:
    return (batch, channels, channels) if layout == "matrix" else (batch, channels * (channels + 1) // 2)


def _packed(op: Body, y: ir.Value, layout: str) -> ir.Value:
    channels = op.Shape(y, start=1, end=2)
    ramp = op.Range(op.constant(np.array(0)), op.Squeeze(channels), op.constant(np.array(1)))
    row, column = op.Unsqueeze(ramp, op.ints(1)), op.Unsqueeze(ramp, op.ints(0))
    kept = op.LessOrEqual(row, column) if layout == "rows" else op.LessOrEqual(column, row)
    places = op.Reshape(op.NonZero(op.Reshape(kept, op.ints(-1))), op.ints(-1))
    flat = op.Reshape(y, op.Concat(op.Shape(y, start=0, end=1), op.Mul(channels, channels), axis=0), allowzero=1)
    return op.Gather(flat, places, axis=1)


def left_vectors(x: Tensor, *, complete: bool) -> tuple[Tensor, Tensor]:
    """The left singular vectors of (N, C, L) as columns, and their values: min(C, L), or all C where ``complete``."""
    missing = max(0, x.shape[1] - x.shape[2]) if complete else 0
    vectors, values, _ = torch.linalg.svd(F.pad(x, (0, missing)), full_matrices=False)
    return vectors, values


def inverse_gaps(values: Tensor) -> Tensor:
    """1 / (s_i^2 - s_j^2), and 0 for equal ones, between which nothing is defined."""
    first, second = values[:, :, None], values[:, None, :]
    gaps = (first - second) * (first + second)
    return torch.where(gaps == 0, 0.0, 1 / torch.where(gaps == 0, 1.0, gaps))
