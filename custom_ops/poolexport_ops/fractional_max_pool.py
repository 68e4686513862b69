"""FractionalMaxPool: the largest cell of every fractional region.

    y = max over the cells of the region; a NaN cell makes y NaN, a region of -inf gives -inf

Where the regions lie follows from the length of each axis and from samples, which are numbers in [0, 1): see
``_fractional.py``. Regions of one known width are as many strided gathers under Max.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._fractional import Rule, winners
from poolexport_ops._operator import Operator
from poolexport_ops._regions import largest_of_regions


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
) -> Tensor:
    """Largest cell of every region.

    Args:
        x: (N, C, *spatial) in float32 or float64, with 2 or 3 spatial axes.
        samples: float64 in [0, 1), (1, 1, axes): one per axis, in torch's order. With ``per_plane`` (N or more, C,
            axes) or a 1 in their place; with random regions (1, steps, axes).
        kernel_shape: cells per window and axis; 0 for Graham's regions.
        output_size: outputs per axis; 0 where the ratio decides.
        output_ratio: outputs per cell and axis, as text with the digits of a double, commas between.
        regions: "torch", "pseudorandom" or "random".
        overlapping: 1 lets Graham's regions share their border cell with the next.
        precision: "float32" or "float64", in which torch's starts are computed.
        per_plane: 1 where every plane has samples of its own.

    Returns:
        (N, C, *output), ``output = output_size`` or ``floor(n output_ratio)``.
    """
    rule = Rule.of(kernel_shape, output_size, output_ratio, regions, overlapping, precision, per_plane)
    rule.require_fit(x, samples)
    places = winners(x, samples, rule)
    return x.flatten(2).gather(2, places.flatten(2)).reshape(places.shape)


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
) -> ir.Value:
    rule = Rule.of(kernel_shape, output_size, output_ratio, regions, overlapping, precision, per_plane)
    return largest_of_regions(op, x, rule.onnx(op, x, samples), rank=rule.rank)


def output_shape(
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
) -> Sequence[int]:
    rule = Rule.of(kernel_shape, output_size, output_ratio, regions, overlapping, precision, per_plane)
    return (*x.shape[:2], *rule.output_lengths(x.shape[2:]))


fractional_max_pool = Operator("FractionalMaxPool", torch_form, onnx_form, output_shape=output_shape, widen=False)
