"""WeightedSumPool: a weighted sum of the cells of every window, channel by channel.

    y = sum(w_k x_k)      over the cells of the window in row-major order; padded cells are 0

This is a depthwise correlation. It is written with slices: onnxruntime's Conv has no float64 kernel and needs a fixed
number of channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from poolexport_ops._body import Body, total
from poolexport_ops._operator import Operator
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
    """Weighted sum of the cells of every window.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        weights: (C, K) with one weight per cell of the window in row-major order, or (1, K) for all channels alike.
        kernel_shape, strides, pads, dilations: the window, in cells; padded cells are 0.

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    per_cell = weights.reshape(weights.shape[0], *(1,) * window.rank, window.size)
    return (window.cells(x, 0.0) * per_cell).sum(-1)


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
    shape = op.ints(1, -1, *(1,) * window.rank)
    terms = []
    for k, cell in enumerate(op.cells(x, window, 0.0)):
        weight = op.Slice(weights, op.ints(k), op.ints(k + 1), op.ints(1))
        terms.append(op.Mul(cell, op.Reshape(weight, shape)))
    return total(op, terms)


weighted_sum_pool = Operator("WeightedSumPool", torch_form, onnx_form)
