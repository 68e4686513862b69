"""FractionalMaxPoolWithIndices: the largest cell of every fractional region, and where it is.

y = max over the cells of the region
indices = row-major position of that cell inside its (n, c) plane: the first of equal cells, the last NaN
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._fractional import Rule, winners
from poolexport_ops._operator import Operator
from poolexport_ops._regions import first_largest_of_regions
from poolexport_ops.fractional_max_pool import output_shape


def torch_form(
    x: Tensor,
    samples: Tensor,
    *,
    kernel_shape: Sequence[int],
    output_size: Sequence[int],
    output_ratio: str,
    regions: str,
    overlapping: int,
    precision: str,
    per_plane: int,
) -> tuple[Tensor, Tensor]:
    """Largest cell of every region and its position in the plane.

    Args:
        x, samples, kernel_shape, output_size, output_ratio, regions, overlapping, precision, per_plane: as for
            FractionalMaxPool.

    Returns:
        values and int64 indices, both (N, C, *output).
    """
    rule = Rule.of(kernel_shape, output_size, output_ratio, regions, overlapping, precision, per_plane)
    rule.require_fit(x, samples)
    places = winners(x, samples, rule)
    return x.flatten(2).gather(2, places.flatten(2)).reshape(places.shape), places


def onnx_form(
    op: Body,
    x: ir.Value,
    samples: ir.Value,
    *,
    kernel_shape: Sequence[int],
    output_size: Sequence[int],
    output_ratio: str,
    regions: str,
    overlapping: int,
    precision: str,
    per_plane: int,
) -> tuple[ir.Value, ir.Value]:
    rule = Rule.of(kernel_shape, output_size, output_ratio, regions, overlapping, precision, per_plane)
    return first_largest_of_regions(op, x, rule.onnx(op, x, samples), rank=rule.rank)


fractional_max_pool_with_indices = Operator(
    "FractionalMaxPoolWithIndices",
    torch_form,
    onnx_form,
    outputs=(None, torch.int64),
    output_shape=output_shape,
    widen=False,
)
