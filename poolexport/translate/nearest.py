"""Resizing by nearest cells: torch multiplies by a step in float32, onnxruntime divides by another.

From 20 cells to 12, torch reads cell ``floor(3 * (20 / 12))``, which is 5, and onnxruntime ``floor(3 / (12 / 20))``,
which is 4. The graph computes torch's places number by number, and gathers. Where cells are only repeated, or every
second one is left out, both are exact, and Resize stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from poolexport.translate._original import original
from poolexport.translate._writing import Size, Write, Writer
from poolexport_ops._body import Body


def entries() -> dict[str, Write]:
    return {f"aten::upsample_nearest{rank}d.vec": partial(_resize, rank) for rank in (1, 2, 3)}


def _resize(
    rank: int,
    writer: Writer,
    input: ir.Value,
    output_size: Sequence[Size] | None,
    scale_factors: Sequence[float] | None,
) -> Any:
    if output_size is None and scale_factors is not None and all(map(_exact, scale_factors)):
        usual = original(getattr(torch.ops.aten, f"upsample_nearest{rank}d").vec)
        return usual(input, output_size, scale_factors)
    op = writer.op
    for axis in range(rank):
        length = op.Shape(input, start=2 + axis, end=3 + axis)
        size = output_size[axis] if output_size is not None else None
        factor = scale_factors[axis] if scale_factors is not None else None
        input = op.Gather(input, _places(op, writer, length, size, factor), axis=2 + axis)
    return input


def _exact(factor: float) -> bool:
    return float(factor).is_integer() or factor == 0.5


def _places(op: Body, writer: Writer, length: ir.Value, size: Size | None, factor: float | None) -> ir.Value:
    """The cell that every cell of the answer is read from, along one axis."""
    if size is not None:
        target = writer.sizes([size])
        step = op.Div(op.cast(length, ir.DataType.FLOAT), op.cast(target, ir.DataType.FLOAT))
    else:
        assert factor is not None
        wanted = op.Mul(op.cast(length, ir.DataType.DOUBLE), op.constant(np.array([factor], np.float64)))
        target = op.cast(op.Floor(wanted), ir.DataType.INT64)
        step = op.constant(np.array([1.0 / factor], np.float32))
    count = op.Range(op.constant(np.array(0)), op.Squeeze(target, op.ints(0)), op.constant(np.array(1)))
    places = op.cast(op.Floor(op.Mul(op.cast(count, ir.DataType.FLOAT), step)), ir.DataType.INT64)
    return op.Min(places, op.Sub(length, op.ints(1)))
