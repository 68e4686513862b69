"""OrdinalPool: the cells of every window in descending order, weighted by a tensor of weights per channel and rank.

    x_(1) >= x_(2) >= ... >= x_(K)      all K cells of the window; padded cells are zeros and take part
    y = sum(w_r x_(r))

A rank of weight 0 adds nothing, whatever it holds; a NaN cell makes every rank of its window NaN. Where the weights are
numbers and not a tensor, SortedWeightedPool leaves the smaller graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from poolexport_ops._body import Body, total
from poolexport_ops._operator import Operator
from poolexport_ops._window import Window
from poolexport_ops.sorted_weighted_pool import sorting_network


def torch_form(
    x: Tensor,
    weights: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    """Sum of the sorted cells of every window, weighted by rank.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        weights: (C, K) with one weight per rank, the largest cell's first, or (1, K) for all channels alike.
        kernel_shape, strides, pads, dilations: the window, in cells; padded cells are 0 and have a rank.

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    cells = window.cells(x, 0.0)
    ranked = cells.sort(-1, descending=True).values
    ranked = ranked.masked_fill(cells.isnan().any(-1, keepdim=True), float("nan"))
    shares = weights.reshape(weights.shape[0], *(1,) * window.rank, window.size)
    return (shares * ranked.masked_fill((shares == 0) & ~ranked.isfinite(), 0.0)).sum(-1)


def onnx_form(
    op: Body,
    x: ir.Value,
    weights: ir.Value,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> ir.Value:
    window = Window.of(kernel_shape, strides, pads, dilations)
    wires = op.cells(x, window, 0.0)
    for i, j in sorting_network(len(wires)):
        wires[i], wires[j] = op.Max(wires[i], wires[j]), op.Min(wires[i], wires[j])
    shape, zero = op.ints(1, -1, *(1,) * window.rank), op.number(0.0)
    terms = []
    for rank, cell in enumerate(wires):
        share = op.Reshape(op.Slice(weights, op.ints(rank), op.ints(rank + 1), op.ints(1)), shape)
        terms.append(op.Where(op.Equal(share, zero), zero, op.Mul(share, cell)))
    return total(op, terms)


ordinal_pool = Operator("OrdinalPool", torch_form, onnx_form)
