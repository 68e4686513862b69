"""WeightedAveragePool: the mean of every window, weighted by given weights.

    m = the power of two below max(|w|)      over the real cells of the window
    u_i = w_i / m
    y = sum(u_i / sum(u) x_i)

Dividing by a number near the largest weight of the same window keeps every weight between -2 and 2, so neither the
products nor the denominator overflow or underflow; a power of two rounds none of them. A window whose weights sum to
zero gives 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from poolexport_ops._body import Body, total
from poolexport_ops._operator import Operator
from poolexport_ops._scale import power_of_two, power_of_two_node
from poolexport_ops._window import Window


def torch_form(
    x: Tensor,
    weights: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    """Mean of every window of ``x`` weighted by ``weights``.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        weights: (N, C, *spatial), or (N, 1, *spatial) for weights shared by all channels.
        kernel_shape, strides, pads, dilations: the window, in cells; padded cells carry no weight.

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    cells = window.cells(weights, 0.0)
    scaled = cells / power_of_two(cells.abs().amax(-1, keepdim=True))
    denominator = scaled.sum(-1, keepdim=True)
    empty = denominator == 0
    shares = scaled / denominator.masked_fill(empty, 1.0)
    return (shares * window.cells(x, 0.0)).sum(-1).masked_fill(empty.squeeze(-1), 0.0)


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
    zero, one = op.number(0.0), op.number(1.0)
    scale = power_of_two_node(op, op.reduce(op.Abs(weights), window, 0.0, "Max"))
    scaled = [op.Div(cell, scale) for cell in op.cells(weights, window, 0.0)]
    denominator = total(op, scaled)
    empty = op.Equal(denominator, zero)
    divisor = op.Where(empty, one, denominator)
    shares = [op.Div(u, divisor) for u in scaled]
    weighted = [op.Mul(share, cell) for share, cell in zip(shares, op.cells(x, window, 0.0))]
    return op.Where(empty, zero, total(op, weighted))


weighted_average_pool = Operator("WeightedAveragePool", torch_form, onnx_form)
