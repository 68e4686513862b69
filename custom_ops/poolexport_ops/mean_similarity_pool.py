"""MeanSimilarityPool: the mean of every window, weighted by how close its cells are to their plain mean.

    m = mean(x)                    over the real cells of the window
    s_i = 2 |x_i m| / (x_i^2 + m^2)      "dice"; "signed_dice" without the magnitude
    y = sum(exp(s_i) x_i) / sum(exp(s_i))
    y = sum(x_i / |x_i - m|) / sum(1 / |x_i - m|)      "inverse_distance"

x_i and m are divided by the larger of their magnitudes before they are squared. s is 0 where both are 0; the value of y
does not depend on that choice. The last form is computed as

    y = m + (number of cells above m - number below) / sum(1 / |x_i - m|)

which is m, the limit, where a cell equals m.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body, total
from poolexport_ops._operator import Operator
from poolexport_ops._window import Window

WEIGHTINGS = ("dice", "signed_dice", "inverse_distance")


def torch_form(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    weighting: str = "dice",
) -> Tensor:
    """Mean of every window, weighted by the similarity of each cell to the window's plain mean.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        kernel_shape, strides, pads, dilations: the window, in cells; padded cells carry no weight.
        weighting: "dice", "signed_dice" or "inverse_distance".

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    cells = window.cells(x, 0.0)
    real = window.cells(torch.ones_like(x[:1, :1]), 0.0)
    m = cells.sum(-1, keepdim=True) / real.sum(-1, keepdim=True)
    if weighting == "inverse_distance":
        return _by_distance(cells, m, real).squeeze(-1)
    weights = torch.exp(_dice(cells, m, signed=weighting == "signed_dice")) * real
    return (weights * cells).sum(-1) / weights.sum(-1)


def _dice(x: Tensor, m: Tensor, *, signed: bool) -> Tensor:
    larger = torch.maximum(x.abs(), m.abs()).detach()
    both_zero = larger == 0
    scale = larger.masked_fill(both_zero, 1.0)
    u, v = x / scale, m / scale
    product = u * v if signed else (u * v).abs()
    return 2 * product / (u * u + v * v).masked_fill(both_zero, 1.0)


def _by_distance(x: Tensor, m: Tensor, real: Tensor) -> Tensor:
    distance = (x - m).abs()
    outside = real == 0
    nearest = distance.masked_fill(outside, torch.inf).amin(-1, keepdim=True).detach()
    met = nearest == 0
    unit = nearest.masked_fill(met, 1.0)
    closeness = (unit / distance.masked_fill(distance == 0, 1.0)).masked_fill(outside, 0.0)
    balance = ((x - m).sign() * real).sum(-1, keepdim=True)
    return m + (balance * unit / closeness.sum(-1, keepdim=True)).masked_fill(met, 0.0)


def onnx_form(
    op: Body,
    x: ir.Value,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    weighting: str = "dice",
) -> ir.Value:
    window = Window.of(kernel_shape, strides, pads, dilations)
    cells = op.cells(x, window, 0.0)
    real = _real_cells(op, x, window)
    count = total(op, real) if real else op.number(window.size)
    m = op.Div(total(op, cells), count)
    if weighting == "inverse_distance":
        return _by_distance_nodes(op, cells, m, real)
    weights = [op.Exp(_dice_nodes(op, cell, m, signed=weighting == "signed_dice")) for cell in cells]
    weights = [op.Mul(w, r) for w, r in zip(weights, real)] if real else weights
    return op.Div(total(op, [op.Mul(w, cell) for w, cell in zip(weights, cells)]), total(op, weights))


def _real_cells(op: Body, x: ir.Value, window: Window) -> list[ir.Value]:
    """For every cell of the window, 1 where it lies on the input and 0 where it is padding; empty without padding."""
    if not window.padded:
        return []
    lengths = op.Slice(op.Shape(x), op.ints(2), op.ints(2 + window.rank), op.ints(0))
    ones = op.Expand(op.number(1.0), op.Concat(op.ints(1, 1), lengths, axis=0))
    return op.cells(ones, window, 0.0)


def _dice_nodes(op: Body, x: ir.Value, m: ir.Value, *, signed: bool) -> ir.Value:
    one = op.number(1.0)
    larger = op.Max(op.Abs(x), op.Abs(m))
    both_zero = op.Equal(larger, op.number(0.0))
    scale = op.Where(both_zero, one, larger)
    u, v = op.Div(x, scale), op.Div(m, scale)
    product = op.Mul(u, v) if signed else op.Abs(op.Mul(u, v))
    squares = op.Where(both_zero, one, op.Add(op.Mul(u, u), op.Mul(v, v)))
    return op.Mul(op.number(2.0), op.Div(product, squares))


def _by_distance_nodes(op: Body, cells: Sequence[ir.Value], m: ir.Value, real: Sequence[ir.Value]) -> ir.Value:
    zero = op.number(0.0)
    offsets = [op.Sub(cell, m) for cell in cells]
    closeness = [op.Reciprocal(op.Abs(offset)) for offset in offsets]  # infinite where a cell equals m: no step
    signs = [op.Sign(offset) for offset in offsets]
    if real:
        outside = [op.Equal(r, zero) for r in real]
        closeness = [op.Where(out, zero, c) for out, c in zip(outside, closeness)]
        signs = [op.Mul(sign, r) for sign, r in zip(signs, real)]
    return op.Add(m, op.Div(total(op, signs), total(op, closeness)))


mean_similarity_pool = Operator("MeanSimilarityPool", torch_form, onnx_form)
