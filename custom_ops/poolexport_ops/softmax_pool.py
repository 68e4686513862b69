"""SoftmaxPool: the mean of every window, weighted by the softmax of logits.

    m = max(logits)        over the real cells of the window
    e_i = exp(logits_i - m)
    y = sum(e_i x_i) / sum(e_i)

Subtracting the maximum of the same window makes the largest weight 1: no exponential overflows, and no denominator is 0
however far the window lies below its neighbours. A cell whose weight underflows to 0 adds nothing, whatever it holds; a
window whose logits are all -inf, or that holds +inf or NaN, gives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body, total
from poolexport_ops._operator import Operator
from poolexport_ops._window import Window

#: Where exp is 0, in float32 and in float64.
UNDERFLOW = (-104.0, -746.0)


def torch_form(
    x: Tensor,
    logits: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    """Mean of every window of ``x`` weighted by the softmax of ``logits`` over the window.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        logits: (N, C, *spatial), or (N, 1, *spatial) for weights shared by all channels.
        kernel_shape, strides, pads, dilations: the window, in cells; padded cells carry no weight.

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    scores = window.cells(logits, -float("inf"))
    shifted = scores - scores.amax(-1, keepdim=True).detach()
    weights = torch.exp(shifted)
    values = window.cells(x, 0.0).masked_fill(shifted < UNDERFLOW[x.dtype == torch.float64], 0.0)
    return (weights * values).sum(-1) / weights.sum(-1)


def onnx_form(
    op: Body,
    x: ir.Value,
    logits: ir.Value,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> ir.Value:
    window = Window.of(kernel_shape, strides, pads, dilations)
    scores = op.cells(logits, window, -float("inf"))
    values = op.cells(x, window, 0.0)
    largest = op.reduce(logits, window, -float("inf"), "Max")
    zero, underflow = op.number(0.0), op.number(UNDERFLOW[op.dtype == ir.DataType.DOUBLE])
    shifted = [op.Sub(score, largest) for score in scores]
    weights = [op.Exp(shift) for shift in shifted]
    # Told by the exponent: exp(-inf) in float64 is not exactly 0 in onnxruntime 1.20.
    absent = [op.Less(shift, underflow) for shift in shifted]
    weighted = [op.Where(none, zero, op.Mul(w, v)) for none, w, v in zip(absent, weights, values)]
    return op.Div(total(op, weighted), total(op, weights))


softmax_pool = Operator("SoftmaxPool", torch_form, onnx_form)
