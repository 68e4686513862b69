"""LogMeanExpPool: a smooth maximum of every window, with a sharpness that may be learned.

    m = max(x)                                    over the real cells of the window
    y = m + log(mean(exp(r (x_i - m)))) / r       over the same cells

Subtracting the largest cell of the same window keeps every exponential between 0 and 1. A window of -inf gives -inf;
one with +inf gives +inf.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body, total
from poolexport_ops._log_mean import expm1_node, log_mean, log_mean_node
from poolexport_ops._operator import Operator
from poolexport_ops._window import Window


def torch_form(
    x: Tensor,
    r: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    """Log-mean-exp of every window.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        r: the sharpness, above 0: shape (C,), or (1,) for all channels alike.
        kernel_shape, strides, pads, dilations: the window, in cells; padded cells do not count.

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    sharpness = r.reshape(1, -1, *(1,) * window.rank)
    real = window.cells(x.new_ones(1, 1, *x.shape[2:]), 0.0)
    inside = real.sum(-1)
    largest = window.cells(x, -float("inf")).amax(-1).detach()
    level = largest.masked_fill(largest.isinf(), 0.0)
    # A padded cell must not be multiplied: a large level would make it infinite, and 0 times that is NaN.
    below = torch.where(real > 0, window.cells(x, 0.0) - level.unsqueeze(-1), torch.zeros_like(level).unsqueeze(-1))
    t = sharpness.unsqueeze(-1) * below
    log = log_mean(torch.expm1(t).sum(-1) / inside, (real * torch.exp(t)).sum(-1) / inside)
    return torch.where(largest.isinf(), largest, level + log / sharpness)


def onnx_form(
    op: Body,
    x: ir.Value,
    r: ir.Value,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> ir.Value:
    window = Window.of(kernel_shape, strides, pads, dilations)
    sharpness = op.Reshape(r, op.ints(1, -1, *(1,) * window.rank))
    largest = op.reduce(x, window, -float("inf"), "Max")
    infinite = op.IsInf(largest)
    level = op.Where(infinite, op.number(0.0), largest)
    ts = [op.Mul(sharpness, op.Sub(cell, level)) for cell in op.cells(x, window, -float("inf"))]
    small, inside = [expm1_node(op, t) for t in ts], op.number(window.size)
    if window.padded:
        real = op.cells(_ones(op, x, window.rank), window, 0.0)
        small, inside = [op.Mul(mask, e) for mask, e in zip(real, small)], total(op, real)
    log = log_mean_node(op, op.Div(total(op, small), inside), op.Div(total(op, [op.Exp(t) for t in ts]), inside))
    return op.Where(infinite, largest, op.Add(level, op.Div(log, sharpness)))


def _ones(op: Body, x: ir.Value, rank: int) -> ir.Value:
    """Ones of shape (1, 1, *spatial)."""
    lengths = op.Slice(op.Shape(x), op.ints(2), op.ints(2 + rank), op.ints(0))
    return op.Expand(op.number(1.0), op.Concat(op.ints(1, 1), lengths, axis=0))


log_mean_exp_pool = Operator("LogMeanExpPool", torch_form, onnx_form)
