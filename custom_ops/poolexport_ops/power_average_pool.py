"""PowerAveragePool: the p-norm of every window.

    m = max(|x|), or min(|x|) for p < 0      over the real cells of the window
    y = m (K / inside sum((x_i / m)^p))^(1/p)

K is the size of the window and ``inside`` the number of its real cells, so a border window weighs as much as a full
one. Dividing by m keeps every power between 0 and 1. p = inf gives max |x|, p = -inf gives min |x|.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from poolexport_ops._body import Body, total
from poolexport_ops._operator import Operator
from poolexport_ops._window import Window


def torch_form(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    p: float,
    signed: bool = False,
) -> Tensor:
    """p-norm of every window.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        kernel_shape, strides, pads, dilations: the window, in cells; padded cells do not count.
        p: the order of the norm, any real number but 0, or an infinity.
        signed: take powers of the cells themselves, not of their magnitudes: NaN wherever a real root does not exist.

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    sign = 1.0 if p > 0 else -1.0
    magnitude = sign * window.cells(sign * x.abs(), -math.inf).amax(-1, keepdim=True)
    if math.isinf(p):
        return magnitude.squeeze(-1)
    magnitude = magnitude.detach()
    flat = (magnitude == 0) | magnitude.isinf()
    outside = window.cells(x.new_zeros(1, 1, *x.shape[2:]), 1.0).bool()
    cells = window.cells(x if signed else x.abs(), 1.0)
    powers = _power(cells / magnitude.masked_fill(flat, 1.0), p).masked_fill(outside, 0.0)
    sums = powers.sum(-1)
    if window.padded:
        sums = sums * (window.size / (~outside).sum(-1).to(x.dtype))
    scale = magnitude.squeeze(-1).masked_fill(flat.squeeze(-1), 1.0)
    return scale * _root(sums, p)


def _power(x: Tensor, p: float) -> Tensor:
    return x * x if p == 2 else x if p == 1 else x.pow(p)


def _root(x: Tensor, p: float) -> Tensor:
    """x^(1/p), with the derivative 0 (not infinite times 0) at x = 0."""
    if p == 1:
        return x
    empty = x == 0
    root = x.masked_fill(empty, 1.0).pow(1 / p)
    return root.masked_fill(empty, 0.0 if p > 0 else math.inf)


def onnx_form(
    op: Body,
    x: ir.Value,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    p: float,
    signed: bool,
) -> ir.Value:
    window = Window.of(kernel_shape, strides, pads, dilations)
    magnitudes = op.Abs(x)
    if p > 0:
        magnitude = op.reduce(magnitudes, window, -math.inf, "Max")
    else:
        magnitude = op.reduce(magnitudes, window, math.inf, "Min")
    if math.isinf(p):
        return magnitude
    flat = op.Or(op.Equal(magnitude, op.number(0.0)), op.IsInf(magnitude))
    scale = op.Where(flat, op.number(1.0), magnitude)
    # A pad of +-inf would spoil its power; one whose power is 0 adds nothing.
    pad_value = 0.0 if p > 0 else math.inf
    cells = op.cells(x if signed else magnitudes, window, pad_value)
    sums = total(op, [_power_node(op, op.Div(cell, scale), p) for cell in cells])
    if window.padded:
        inside = op.coverage(x, window, (0,) * len(pads))
        sums = op.Div(sums, inside)
    if p < 0:
        sums = op.Where(op.Equal(sums, op.number(0.0)), op.number(0.0), sums)  # the root of -0 is -inf
    root = op.Sqrt(sums) if p == 2 else sums if p == 1 else op.Pow(sums, op.number(1 / p))
    return op.Mul(scale, root)


def _power_node(op: Body, x: ir.Value, p: float) -> ir.Value:
    if abs(p) == 0.5:  # a square root, as in torch: pow would answer inf for -inf
        return op.Sqrt(x) if p > 0 else op.Reciprocal(op.Sqrt(x))
    return op.Mul(x, x) if p == 2 else x if p == 1 else op.Pow(x, op.number(p))


power_average_pool = Operator("PowerAveragePool", torch_form, onnx_form)
