"""GlobalAveragePool: the mean of every plane.

    y = sum(x) / M      over all M locations of one channel

The sum is made in float64: onnxruntime's float32 sums lose a digit on a row of 16,000 cells and three on a million.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator


def torch_form(x: Tensor, *, axes: Sequence[int], keepdims: int = 1) -> Tensor:
    """Mean over whole axes.

    Args:
        x: (N, C, *spatial).
        axes: the axes to average over, counted from the front.
        keepdims: 1 keeps them with length 1, 0 removes them.

    Returns:
        (N, C, 1, ...), or (N, C) without ``keepdims``.
    """
    # In float64, as in the graph: a float32 sum of large cells leaves the range where their mean does not.
    return x.mean(dim=tuple(axes), keepdim=bool(keepdims), dtype=torch.float64).to(x.dtype)


def onnx_form(op: Body, x: ir.Value, *, axes: Sequence[int], keepdims: int) -> ir.Value:
    mean = op.ReduceMean(op.cast(x, ir.DataType.DOUBLE), op.ints(*axes), keepdims=keepdims)
    return op.cast(mean, op.dtype)


def output_shape(x: Tensor, *, axes: Sequence[int], keepdims: int) -> Sequence[int]:
    lengths = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
    return lengths if keepdims else [n for axis, n in enumerate(lengths) if axis not in axes]


global_average_pool = Operator("GlobalAveragePool", torch_form, onnx_form, output_shape=output_shape, widen=False)
