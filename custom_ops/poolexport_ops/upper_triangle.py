"""UpperTriangle: the entries on and above the diagonal of every matrix as a vector.

    row               (0,0) (0,1) (0,2) ... (1,1) (1,2) ...
    column            (0,0) (0,1) (1,1) (0,2) (1,2) (2,2) ...
    diagonal_first    (0,0) (1,1) (2,2) ...  then  (0,1) (0,2) (1,2) (0,3) ...

With ``isometric`` entries above the diagonal are multiplied by sqrt(2): the scalar product of two vectors is that of
the two symmetric matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._spd import length_node, places_node

ORDERS = ("row", "column", "diagonal_first")


def torch_form(s: Tensor, *, order: str, isometric: int = 0) -> Tensor:
    """The upper triangle of every matrix.

    Args:
        s: (N, D, D).
        order: "row", "column" or "diagonal_first" (and then by column).
        isometric: 1 multiplies entries above the diagonal by sqrt(2).

    Returns:
        (N, D (D + 1) / 2).
    """
    d = s.shape[1]
    if order == "row":
        rows, columns = torch.triu_indices(d, d, device=s.device)
    else:
        # The lower triangle by row is the upper one by column, mirrored.
        columns, rows = torch.tril_indices(d, d, offset=-int(order == "diagonal_first"), device=s.device)
    if order == "diagonal_first":
        diagonal = torch.arange(d, device=s.device)
        rows, columns = torch.cat([diagonal, rows]), torch.cat([diagonal, columns])
    entries = s[:, rows, columns]
    return torch.where(rows == columns, entries, math.sqrt(2) * entries) if isometric else entries


def onnx_form(op: Body, s: ir.Value, *, order: str, isometric: int) -> ir.Value:
    d = length_node(op, s, 1)
    place = places_node(op, d)
    first, second = op.Unsqueeze(place, op.ints(1)), op.Unsqueeze(place, op.ints(0))
    if order == "row":
        index = _kept_node(op, op.Less(first, op.Add(second, op.ints(1))), op.Add(op.Mul(first, d), second))
    else:
        mirrored = op.Add(op.Mul(second, d), first)
        bound = first if order == "diagonal_first" else op.Add(first, op.ints(1))
        index = _kept_node(op, op.Less(second, bound), mirrored)
    if order == "diagonal_first":
        index = op.Concat(op.Mul(place, op.Add(d, op.ints(1))), index, axis=0)
    flat = op.Reshape(s, op.Concat(length_node(op, s, 0), op.Mul(d, d), axis=0))
    entries = op.Gather(flat, index, axis=1)
    if not isometric:
        return entries
    row = op.Div(index, d)
    diagonal = op.Equal(index, op.Mul(row, op.Add(d, op.ints(1))))
    root = op.constant(np.array([math.sqrt(2)], op.dtype.numpy()))
    return op.Where(diagonal, entries, op.Mul(entries, root))


def _kept_node(op: Body, mask: ir.Value, index: ir.Value) -> ir.Value:
    """The numbers of a table where a mask is true, row by row."""
    place = op.Reshape(op.NonZero(op.Reshape(mask, op.ints(-1))), op.ints(-1))
    return op.Gather(op.Reshape(index, op.ints(-1)), place, axis=0)


def output_shape(s: Tensor, *, order: str, isometric: int) -> Sequence[int]:
    d = s.shape[1]
    return (s.shape[0], d * (d + 1) // 2)


upper_triangle = Operator("UpperTriangle", torch_form, onnx_form, output_shape=output_shape)
