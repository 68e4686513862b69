"""DetailPreservingPool: the mean of every window, weighted by how far each cell lies from a centre of the window.

    d_i = x_i - centre, or max(x_i - centre, 0)
    v_i = d_i^2 + epsilon, over the mean or the sum of all v of the window, or as it is
    w_i = v_i^exponent + exp(log_bias)
    y   = sum(w_i x_i) / sum(w_i)

Squares, powers and the bias are kept as logarithms below the largest of their window, so that none of them overflows.
The difference of two cells may, beyond half the range of float64, in which all of this is computed. A window with a
difference that is NaN or infinite gives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body, total
from poolexport_ops._operator import Operator
from poolexport_ops._window import Window


def torch_form(
    x: Tensor,
    exponent: Tensor,
    log_bias: Tensor,
    epsilon: Tensor,
    centre: Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    above_only: bool,
    normalize: str,
) -> Tensor:
    """Mean of every window of ``x``, weighted by the distance of its cells from a centre.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        exponent: (C,), or (1,) for all channels alike, in float64; not negative.
        log_bias: (C,), or (1,) for all channels alike, in float64.
        epsilon: one positive number, in float64.
        centre: (N, C, *output), one number per window, in float64; the mean of the window where there is none.
        kernel_shape, strides, pads, dilations: the window, in cells, without pads: those have no distance.
        above_only: count cells below the centre as lying on it.
        normalize: "mean" or "sum" of v over the window, or "none".

    Returns:
        (N, C, *output), ``output = floor((n - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = _unpadded(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    cells = window.cells(x.double(), 0.0)
    difference = cells - (cells.mean(-1) if centre is None else centre).unsqueeze(-1)
    if above_only:
        difference = difference.relu()
    scale = difference.detach().abs().amax(-1, keepdim=True)
    scale = torch.maximum(scale, torch.ones_like(scale))
    # What underflows is raised to the smallest number whose logarithm has a gradient.
    v = torch.maximum((difference / scale) ** 2 + epsilon / scale / scale, _tiny(cells))
    power = exponent.reshape(1, -1, *(1,) * (window.rank + 1))
    bias = log_bias.reshape(1, -1, *(1,) * (window.rank + 1))
    if normalize == "none":
        bias = bias - 2 * power * scale.log()
    else:
        v = v / (v.mean(-1, keepdim=True) if normalize == "mean" else v.sum(-1, keepdim=True))
    reward = power * v.log()
    largest = torch.maximum(reward.amax(-1, keepdim=True), bias).detach()
    weights = (reward - largest).exp() + (bias - largest).exp()
    return (weights / weights.sum(-1, keepdim=True) * cells).sum(-1).to(x.dtype)


def onnx_form(
    body: Body,
    x: ir.Value,
    exponent: ir.Value,
    log_bias: ir.Value,
    epsilon: ir.Value,
    centre: ir.Value | None = None,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    above_only: bool,
    normalize: str,
) -> ir.Value:
    window = _unpadded(kernel_shape, strides, pads, dilations)
    op = body.wide()
    cells = op.cells(op.cast(x, op.dtype), window, 0.0)
    if centre is None:
        centre = op.Div(total(op, cells), op.number(window.size))
    differences = [op.Sub(cell, centre) for cell in cells]
    if above_only:  # not Relu, which need not keep NaN
        differences = [op.Max(difference, op.number(0.0)) for difference in differences]
    scale = op.Max(op.number(1.0), *[op.Abs(difference) for difference in differences])
    floor = op.Div(op.Div(epsilon, scale), scale)
    ratios = [op.Div(difference, scale) for difference in differences]
    tiny = op.number(np.finfo(op.dtype.numpy()).tiny)
    v = [op.Max(op.Add(op.Mul(ratio, ratio), floor), tiny) for ratio in ratios]
    shape = op.ints(1, -1, *(1,) * window.rank)
    power, bias = op.Reshape(exponent, shape), op.Reshape(log_bias, shape)
    if normalize == "none":
        bias = op.Sub(bias, op.Mul(op.Mul(power, op.number(2.0)), op.Log(scale)))
    else:
        divisor = total(op, v)
        if normalize == "mean":
            divisor = op.Div(divisor, op.number(window.size))
        v = [op.Div(square, divisor) for square in v]
    rewards = [op.Mul(power, op.Log(square)) for square in v]
    largest = op.Max(bias, *rewards)
    constant = op.Exp(op.Sub(bias, largest))
    weights = [op.Add(op.Exp(op.Sub(reward, largest)), constant) for reward in rewards]
    denominator = total(op, weights)
    y = total(op, [op.Mul(op.Div(weight, denominator), cell) for weight, cell in zip(weights, cells)])
    return op.cast(y, body.dtype)


def _unpadded(
    kernel_shape: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> Window:
    window = Window.of(kernel_shape, strides, pads, dilations)
    if window.padded:
        raise ValueError(f"a padded cell has no distance from the centre; pads must be 0, got {list(pads)}")
    return window


def _tiny(x: Tensor) -> Tensor:
    return torch.tensor(torch.finfo(x.dtype).tiny, dtype=x.dtype, device=x.device)


detail_preserving_pool = Operator("DetailPreservingPool", torch_form, onnx_form, widen=False)
