"""Grid sampling by nearest cells that reflects at the borders: torch reflects, then rounds; onnxruntime the reverse.

Beyond a border both differ where a place lies halfway between two cells: 8.5 is reflected at 7.5 to 6.5, whose nearest
even cell is 6; rounded first it is 8, reflected 7. The graph computes the reflected place as torch does, number by
number, rounds it, and leaves only the choice of that very cell to GridSample.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from poolexport.translate._original import original
from poolexport.translate._writing import Write, Writer
from poolexport_ops._body import Body

NEAREST, REFLECTION = 1, 2


def entries() -> dict[str, Write]:
    return {"aten::grid_sampler": _sample, "aten::grid_sampler_2d": _sample}


def _sample(
    writer: Writer,
    input: ir.Value,
    grid: ir.Value,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
) -> Any:
    flat = grid.shape is not None and len(grid.shape) == 4
    if not flat or (interpolation_mode, padding_mode) != (NEAREST, REFLECTION):
        usual = original(torch.ops.aten.grid_sampler_2d.default)
        return usual(input, grid, interpolation_mode, padding_mode, align_corners)
    op = writer.op
    # The grid counts columns first.
    lengths = op.cast(op.Gather(op.Shape(input), op.ints(3, 2)), op.dtype)
    cells = op.Round(_reflected(op, grid, lengths, align_corners))
    # Place -1 is the first cell and 1 the last one, and every cell between them is off by less than half a cell.
    last = op.Max(op.Sub(lengths, op.number(1.0)), op.number(1.0))
    places = op.Sub(op.Div(op.Add(cells, cells), last), op.number(1.0))
    return op.GridSample(input, places, align_corners=1, mode="nearest", padding_mode="border")


def _reflected(op: Body, grid: ir.Value, lengths: ir.Value, align_corners: bool) -> ir.Value:
    """Where a place of the grid lies, in cells, after it has been reflected into the map."""
    half, zero = op.number(0.5), op.number(0.0)
    last = op.Sub(lengths, op.number(1.0))
    shifted = op.Add(grid, op.number(1.0))
    if align_corners:
        low, span = zero, last
        place = op.Mul(shifted, op.Mul(last, half))
    else:
        low, span = op.number(-0.5), lengths
        place = op.Sub(op.Mul(shifted, op.Mul(lengths, half)), half)
    ahead = op.Abs(op.Sub(place, low))
    single = op.Equal(span, zero)
    turns = op.Floor(op.Div(ahead, op.Where(single, op.number(1.0), span)))
    rest = op.Sub(ahead, op.Mul(turns, span))
    odd = op.Greater(op.Sub(turns, op.Mul(op.Floor(op.Mul(turns, half)), op.number(2.0))), zero)
    inside = op.Where(single, zero, op.Add(op.Where(odd, op.Sub(span, rest), rest), low))
    # torch takes a place that is no number for the first cell.
    known = op.Where(op.IsNaN(inside), zero, inside)
    return op.Min(op.Max(known, zero), last)
