"""What operators on symmetric positive semidefinite matrices share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import INT64_MAX, Body


def trace(s: Tensor) -> Tensor:
    """Sum of the diagonal, as (N, 1, 1)."""
    return s.diagonal(dim1=1, dim2=2).sum(1).reshape(-1, 1, 1)


def trace_node(op: Body, s: ir.Value, eye: ir.Value) -> ir.Value:
    # A sum over Where, because 0 times an infinity would be NaN.
    diagonal = op.Where(op.cast(eye, ir.DataType.BOOL), s, op.number(0.0))
    return op.ReduceSum(diagonal, op.ints(1, 2), keepdims=1)


def length_node(op: Body, x: ir.Value, axis: int, last: bool = False) -> ir.Value:
    """Length of an axis, as a vector of one number."""
    return op.Slice(op.Shape(x), op.ints(axis), op.ints(INT64_MAX if last else axis + 1), op.ints(0))


def places_node(op: Body, length: ir.Value) -> ir.Value:
    """0, 1, ... up to a length that is a vector of one number."""
    return op.Range(op.constant(np.array(0)), op.Squeeze(length, op.ints(0)), op.constant(np.array(1)))


def eye_node(op: Body, s: ir.Value) -> ir.Value:
    """The identity of the size of (N, D, D), as (1, D, D)."""
    place = places_node(op, length_node(op, s, 2, last=True))
    same = op.Equal(op.Unsqueeze(place, op.ints(0)), op.Unsqueeze(place, op.ints(1)))
    return op.Unsqueeze(op.cast(same, op.dtype), op.ints(0))


def eye_like(s: Tensor) -> Tensor:
    return torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
