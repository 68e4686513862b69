"""AdaptiveAveragePool: the mean of every bin, for an output of a given size.

    y_i = mean of the cells floor(i n / o) ... ceil((i + 1) n / o) - 1      along every axis

Any size divides any length: bins share cells, and repeat them where the output is the larger.

The graph gathers the cells of the bins and adds them up in float64, one axis after the other. Masks of o n weights take
several times the time and memory; an integral image is as fast, but spreads a NaN, or an infinity, over every bin
behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import torch.nn.functional as F
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._regions import along, bins

POOLS: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def torch_form(x: Tensor, *, output_size: Sequence[int]) -> Tensor:
    """Mean of every bin.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        output_size: bins per spatial axis; 0 keeps an axis as it is.

    Returns:
        (N, C, *output_size), with the input's length where that is 0.
    """
    lengths = list(output_shape(x, output_size=output_size))[2:]
    return POOLS[len(output_size)](x.double(), lengths).to(x.dtype)


def onnx_form(op: Body, x: ir.Value, *, output_size: Sequence[int]) -> ir.Value:
    y = op.cast(x, ir.DataType.DOUBLE)
    for axis, size in enumerate(output_size):
        if size == 1:
            y = op.ReduceMean(y, op.ints(2 + axis), keepdims=1)
        elif size:
            y = _means(op, y, axis, size, len(output_size))
    return op.cast(y, op.dtype)


def _means(op: Body, x: ir.Value, axis: int, size: int, rank: int) -> ir.Value:
    regions = bins(op, x, axis, size)
    taps, new = regions.taps(op)
    cells = op.Where(along(op, new, rank, axis), op.Gather(x, taps, axis=2 + axis), op.constant(np.array(0.0)))
    count = op.cast(regions.lengths(op), ir.DataType.DOUBLE)
    return op.Div(op.ReduceSum(cells, op.ints(3 + axis), keepdims=0), along(op, count, rank, axis))


def output_shape(x: Tensor, *, output_size: Sequence[int]) -> Sequence[int]:
    return (*x.shape[:2], *(size or n for size, n in zip(output_size, x.shape[2:])))


adaptive_average_pool = Operator("AdaptiveAveragePool", torch_form, onnx_form, output_shape=output_shape)
