"""AdaptiveMaxPoolWithIndices: the largest cell of every adaptive bin, and where it is.

y = max over the cells of the bin
indices = row-major position of that cell inside its (n, c) plane: the first of equal cells, the last NaN
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._regions import bins, first_largest_of_regions
from poolexport_ops.adaptive_average_pool import output_shape

POOLS: dict[int, Callable[..., Any]] = {
    1: F.adaptive_max_pool1d_with_indices,
    2: F.adaptive_max_pool2d_with_indices,
    3: F.adaptive_max_pool3d_with_indices,
}


def torch_form(x: Tensor, *, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Largest cell of every bin and its position in the plane.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        output_size: bins per spatial axis; 0 keeps an axis as it is.

    Returns:
        values and int64 indices, both (N, C, *output_size), with the input's length where that is 0.
    """
    return POOLS[len(output_size)](x, list(output_shape(x, output_size=output_size))[2:])


def onnx_form(op: Body, x: ir.Value, *, output_size: Sequence[int]) -> tuple[ir.Value, ir.Value]:
    regions = {axis: bins(op, x, axis, size) for axis, size in enumerate(output_size) if size}
    return first_largest_of_regions(op, x, regions, rank=len(output_size))


adaptive_max_pool_with_indices = Operator(
    "AdaptiveMaxPoolWithIndices", torch_form, onnx_form, outputs=(None, torch.int64), output_shape=output_shape
)
