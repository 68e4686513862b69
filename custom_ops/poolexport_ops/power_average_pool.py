"""PowerAveragePool: the p-norm of every window.

    m = the power of two below max(|x|), or below min(|x|) for p < 0      over the real cells of the window
    y = m (K / inside sum((x_i / m)^p))^(1/p)

K is the size of the window and ``inside`` the number of its real cells, so a border window weighs as much as a full
one. Dividing by m keeps the dominant power near 1, and rounds nothing; m is 1 for orders whose powers stay in range by
themselves, and the dominant cell itself for orders beyond 64. p = inf gives max |x|, p = -inf gives min |x|.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body, total
from poolexport_ops._operator import Operator
from poolexport_ops._scale import power_of_two, power_of_two_node
from poolexport_ops._window import Window

#: Above this order only a window whose dominant power is exactly 1 stays in range.
STEEP = 64


def torch_form(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    p: str,
    signed: bool = False,
) -> Tensor:
    """p-norm of every window.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        kernel_shape, strides, pads, dilations: the window, in cells; padded cells do not count.
        p: the order of the norm, any real number but 0, or an infinity, as text: a float attribute would round it.
        signed: take powers of the cells themselves, not of their magnitudes: NaN wherever a real root does not exist.

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    order = float(p)
    sign = 1.0 if order > 0 else -1.0
    magnitude = sign * window.cells(sign * x.abs(), -math.inf).amax(-1, keepdim=True)
    if math.isinf(order):
        return magnitude.squeeze(-1)
    scale = _scale(magnitude.detach(), order)
    outside = window.cells(x.new_zeros(1, 1, *x.shape[2:]), 1.0).bool()
    cells = window.cells(x if signed else x.abs(), 1.0)
    powers = _power(cells / scale, order).masked_fill(outside, 0.0)
    sums = powers.sum(-1)
    if window.padded:
        sums = sums * (window.size / (~outside).sum(-1).to(x.dtype))
    return scale.squeeze(-1) * _root(sums, order)


def _scale(magnitude: Tensor, p: float) -> Tensor:
    """What to divide a window by: 1 where no power leaves the range, else what brings the dominant cell near 1."""
    if _small(p):
        return torch.ones_like(magnitude)
    if abs(p) <= STEEP:
        return power_of_two(magnitude)
    return torch.where((magnitude > 0) & magnitude.isfinite(), magnitude, 1.0)


def _small(p: float) -> bool:
    # Dividing could lose small cells, whose low powers still count.
    return abs(p) <= 0.5 or p == 1


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
    p: str,
    signed: bool,
) -> ir.Value:
    window = Window.of(kernel_shape, strides, pads, dilations)
    order = float(p)
    magnitudes = op.Abs(x)
    if order > 0:
        magnitude = op.reduce(magnitudes, window, -math.inf, "Max")
    else:
        magnitude = op.reduce(magnitudes, window, math.inf, "Min")
    if math.isinf(order):
        return magnitude
    scale = _scale_node(op, magnitude, order)
    # A pad of +-inf would spoil its power; one whose power is 0 adds nothing.
    pad_value = 0.0 if order > 0 else math.inf
    cells = op.cells(x if signed else magnitudes, window, pad_value)
    sums = total(op, [_power_node(op, cell if scale is None else op.Div(cell, scale), order) for cell in cells])
    if window.padded:
        inside = op.coverage(x, window, (0,) * len(pads))
        sums = op.Div(sums, inside)
    if order < 0:
        sums = op.Where(op.Equal(sums, op.number(0.0)), op.number(0.0), sums)  # the root of -0 is -inf
    root = _square_root(op, sums) if order == 2 else sums if order == 1 else op.Pow(sums, op.number(1 / order))
    return root if scale is None else op.Mul(scale, root)


def _scale_node(op: Body, magnitude: ir.Value, p: float) -> ir.Value | None:
    if _small(p):
        return None
    if abs(p) <= STEEP:
        return power_of_two_node(op, magnitude)
    flat = op.Or(op.Equal(magnitude, op.number(0.0)), op.IsInf(magnitude))
    return op.Where(flat, op.number(1.0), magnitude)


def _power_node(op: Body, x: ir.Value, p: float) -> ir.Value:
    if abs(p) == 0.5:  # a square root, as in torch: pow would answer inf for -inf
        return _square_root(op, x) if p > 0 else op.Reciprocal(_square_root(op, x))
    return op.Mul(x, x) if p == 2 else x if p == 1 else op.Pow(x, op.number(p))


def _square_root(op: Body, x: ir.Value) -> ir.Value:
    # Sqrt answers NaN for infinity in onnxruntime 1.20.
    infinite = op.IsInf(x, detect_negative=0)
    return op.Where(infinite, x, op.Sqrt(op.Where(infinite, op.number(1.0), x)))


power_average_pool = Operator("PowerAveragePool", torch_form, onnx_form)
