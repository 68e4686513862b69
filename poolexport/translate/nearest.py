"""Resizing by nearest cells: torch multiplies by a step in float32, onnxruntime divides by another.

From 20 cells to 12, torch reads cell ``floor(3 * (20 / 12))``, which is 5, and onnxruntime ``floor(3 / (12 / 20))``,
which is 4. The graph computes torch's places number by number, and gathers. With two axes torch copies one that keeps
its length and repeats every cell of one that doubles, whatever the factor says. Where cells are only repeated, or every
second one is left out, both are exact, and Resize stays.

Mode "nearest-exact" reads the cell under the middle of the answer's: half a cell is added before the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from poolexport.translate._original import original
from poolexport.translate._writing import Size, Write, Writer
from poolexport_ops._body import Body


def entries() -> dict[str, Write]:
    names = {"upsample_nearest": 0.0, "_upsample_nearest_exact": 0.5}
    return {f"aten::{name}{n}d.vec": partial(_resize, n, shift) for name, shift in names.items() for n in (1, 2, 3)}


def _resize(
    rank: int,
    shift: float,
    writer: Writer,
    input: ir.Value,
    output_size: Sequence[Size] | None,
    scale_factors: Sequence[float] | None,
) -> Any:
    if not shift and output_size is None and scale_factors is not None and all(map(_exact, scale_factors)):
        usual = original(getattr(torch.ops.aten, f"upsample_nearest{rank}d").vec)
        return usual(input, output_size, scale_factors)
    op = writer.op
    for axis in range(rank):
        length = op.Shape(input, start=2 + axis, end=3 + axis)
        size = output_size[axis] if output_size is not None else None
        factor = scale_factors[axis] if scale_factors is not None else None
        places = _places(op, writer, length, size, factor, shift, whole=rank == 2 and not shift)
        input = op.Gather(input, places, axis=2 + axis)
    return input


def _exact(factor: float) -> bool:
    """Whether torch's step never leaves a cell too early: a step that was rounded down does."""
    if factor == 0.5:
        return True
    return float(factor).is_integer() and Fraction(float(np.float32(1.0 / factor))) >= Fraction(1, int(factor))


def _places(
    op: Body, writer: Writer, length: ir.Value, size: Size | None, factor: float | None, shift: float, whole: bool
) -> ir.Value:
    """The cell that every cell of the answer is read from, along one axis.

    Args:
        size, factor: of the answer; one of them is None.
        shift: 0.5 for the middle of a cell, or 0.
        whole: whether an axis that keeps its length, or doubles, is copied cell by cell.
    """
    if size is not None:
        target = writer.sizes([size])
        step = op.Div(op.cast(length, ir.DataType.FLOAT), op.cast(target, ir.DataType.FLOAT))
    else:
        assert factor is not None
        wanted = op.Mul(op.cast(length, ir.DataType.DOUBLE), op.constant(np.array([factor], np.float64)))
        target = op.cast(op.Floor(wanted), ir.DataType.INT64)
        step = op.constant(np.array([1.0 / factor], np.float32))
    count = op.Range(op.constant(np.array(0)), op.Squeeze(target, op.ints(0)), op.constant(np.array(1)))
    middle = op.cast(count, ir.DataType.FLOAT)
    if shift:
        middle = op.Add(middle, op.constant(np.array(shift, np.float32)))
    places = op.cast(op.Floor(op.Mul(middle, step)), ir.DataType.INT64)
    if whole and size is None:
        places = op.Where(op.Equal(target, op.Mul(length, op.ints(2))), op.Div(count, op.ints(2)), places)
        places = op.Where(op.Equal(target, length), count, places)
    return op.Min(places, op.Sub(length, op.ints(1)))
