"""GeneralizedMeanPool: the power mean of every window, with an order that may be learned.

    m = max(x)                             over the real cells of the window
    y = m (mean((x_i / m)^p))^(1/p)        over the same cells

Dividing by the largest cell of the same window keeps every power between 0 and 1, and their mean at 1 / K or above.
PowerAveragePool is a sum of powers, and its order is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body, total
from poolexport_ops._operator import Operator
from poolexport_ops._window import Window


def torch_form(
    x: Tensor,
    p: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    """Power mean of every window.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes; no cell is negative.
        p: the order of the mean, above 0: shape (C,), or (1,) for all channels alike.
        kernel_shape, strides, pads, dilations: the window, in cells; padded cells do not count.

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    order = p.reshape(1, -1, *(1,) * window.rank)
    cells = window.cells(x, 0.0)
    largest = cells.amax(-1).detach()
    scale = largest.masked_fill((largest == 0) | largest.isinf(), 1.0)
    powers = torch.pow(cells / scale.unsqueeze(-1), order.unsqueeze(-1))
    inside = window.cells(x.new_ones(1, 1, *x.shape[2:]), 0.0).sum(-1)
    return scale * torch.pow(powers.sum(-1) / inside, 1 / order)


def onnx_form(
    op: Body,
    x: ir.Value,
    p: ir.Value,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> ir.Value:
    window = Window.of(kernel_shape, strides, pads, dilations)
    order = op.Reshape(p, op.ints(1, -1, *(1,) * window.rank))
    largest = op.reduce(x, window, 0.0, "Max")
    flat = op.Or(op.Equal(largest, op.number(0.0)), op.IsInf(largest))
    scale = op.Where(flat, op.number(1.0), largest)
    powers = [op.Pow(op.Div(cell, scale), order) for cell in op.cells(x, window, 0.0)]
    mean = op.Div(total(op, powers), op.number(window.size))
    if window.padded:
        mean = op.Div(mean, op.coverage(x, window, (0,) * len(pads)))
    return op.Mul(scale, op.Pow(mean, op.Reciprocal(order)))


generalized_mean_pool = Operator("GeneralizedMeanPool", torch_form, onnx_form)
