"""AveragePool: the mean of every window, with the divisor spelled out.

    y = sum over the real cells of the window / divisor

The divisor is ``divisor_override`` where that is not 0; else the number of the window's cells that lie on the input or
on its counted pads.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch.nn.functional as F
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._window import Window

POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def torch_form(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    counted_pads: Sequence[int],
    divisor_override: int = 0,
) -> Tensor:
    """Mean of every window.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        kernel_shape, strides, pads, dilations: the window, in cells; pads are begin..., then end....
        counted_pads: how many of the pads of each side count in the divisor.
        divisor_override: the divisor of every window; 0 for the number of counted cells.

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    mean = _mean(x, window)
    if divisor_override:
        return mean * (window.size / divisor_override)
    if tuple(counted_pads) == window.pads:
        return mean
    ones = Window.of(kernel_shape, strides, counted_pads).pad(x.new_ones(1, 1, *x.shape[2:]), 1.0)
    rest = Window.of(kernel_shape, strides, [p - c for p, c in zip(pads, counted_pads)], dilations)
    return mean / _mean(ones, rest)


def _mean(x: Tensor, window: Window) -> Tensor:
    """Mean of every window over all its cells, pads counted as zeros."""
    if any(d > 1 for d in window.dilations):
        return window.cells(x, 0.0).mean(-1)
    return POOLS[window.rank](window.pad(x, 0.0), window.kernel_shape, window.strides)


def onnx_form(
    op: Body,
    x: ir.Value,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    counted_pads: Sequence[int],
    divisor_override: int,
) -> ir.Value:
    window = Window.of(kernel_shape, strides, pads, dilations)
    if divisor_override:
        return op.Mul(op.mean(x, window), op.number(window.size / divisor_override))
    return op.mean(x, window, counted_pads)


average_pool = Operator("AveragePool", torch_form, onnx_form)
