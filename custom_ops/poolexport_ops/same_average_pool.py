"""SameAveragePool: the mean of every window, with "same" padding.

    y = sum over the real cells of the window / divisor

The divisor is the number of the window's cells, or of its real cells only; sums are made in float64. The body adds up
slices: onnxruntime folds a constant Pad into a standard AveragePool, and several of its versions divide wrongly where
pads differ by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch.nn.functional as F
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._same import pad_same, pad_same_node, same_output_shape, spatial, unpadded
from poolexport_ops._window import Window

POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def torch_form(x: Tensor, *, kernel_shape: Sequence[int], strides: Sequence[int], count_include_pad: int = 0) -> Tensor:
    """Mean of every window.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        kernel_shape, strides: the window, in cells.
        count_include_pad: 1 counts padded cells, as zeros; 0 leaves them out.

    Returns:
        (N, C, *output), ``output = ceil(n / stride)``.
    """
    window = unpadded(kernel_shape, strides, [1] * len(kernel_shape))
    wide = x.double()
    mean = _mean(wide, window)
    return (mean if count_include_pad else mean / _mean(wide.new_ones(1, 1, *x.shape[2:]), window)).to(x.dtype)


def _mean(x: Tensor, window: Window) -> Tensor:
    return POOLS[window.rank](pad_same(x, window, 0.0), window.kernel_shape, window.strides)


def onnx_form(
    op: Body, x: ir.Value, *, kernel_shape: Sequence[int], strides: Sequence[int], count_include_pad: int
) -> ir.Value:
    window = unpadded(kernel_shape, strides, [1] * len(kernel_shape))
    padded = op.cast(pad_same_node(op, x, window, 0.0), ir.DataType.DOUBLE)
    total = op.reduce(padded, window, 0.0, "Sum")
    if count_include_pad:
        return op.cast(op.Div(total, op.constant(np.array(float(window.size)))), op.dtype)
    ones = op.Expand(op.number(1.0), op.Concat(op.ints(1, 1), spatial(op, x, window.rank), axis=0))
    count = op.reduce(pad_same_node(op, ones, window, 0.0), window, 0.0, "Sum")
    return op.cast(op.Div(total, op.cast(count, ir.DataType.DOUBLE)), op.dtype)


same_average_pool = Operator("SameAveragePool", torch_form, onnx_form, output_shape=same_output_shape)
