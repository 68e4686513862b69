"""MatrixSqrt: the square root of symmetric positive semidefinite matrices, as far as some Newton-Schulz steps take it.

    A = S / t                                     t = tr S, or the Frobenius norm of S
    Y = A, Z = I;  T = (3 I - Z Y) / 2,  Y = Y T,  Z = T Z      a fixed number of times
    result = sqrt(t) Y

Few steps do not reach the root, and are not meant to: small eigenvalues stay small. An eigenvalue 0 stays 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._spd import eye_like, eye_node, trace, trace_node

NORMS = ("trace", "frobenius")


def torch_form(s: Tensor, *, iterations: int, norm: str) -> Tensor:
    """Newton-Schulz steps towards the square root; 0 for a matrix of zeros.

    Args:
        s: (N, D, D), symmetric, no eigenvalue below 0.
        iterations: how many steps, at least 1.
        norm: "trace" or "frobenius", what a matrix is divided by first.

    Returns:
        (N, D, D).
    """
    t = trace(s)
    t = torch.where(t == 0, 1.0, t)
    if norm == "frobenius":
        # The trace keeps the squares in range; its share of the norm is at least 1 / sqrt(D) but for zeros.
        square = (s / t).square().sum(2, keepdim=True).sum(1, keepdim=True)
        t = t * torch.where(square == 0, 1.0, square).sqrt()
    eye = eye_like(s)
    y, z = s / t, None
    for step in range(iterations):
        towards = (3 * eye - (y if z is None else z @ y)) / 2
        y = y @ towards
        if step < iterations - 1:
            z = towards if z is None else towards @ z
    return t.sqrt() * y


def onnx_form(op: Body, s: ir.Value, *, iterations: int, norm: str) -> ir.Value:
    zero, one, half = op.number(0.0), op.number(1.0), op.number(0.5)
    eye = eye_node(op, s)
    t = trace_node(op, s, eye)
    t = op.Where(op.Equal(t, zero), one, t)
    if norm == "frobenius":
        share = op.Div(s, t)
        square = op.ReduceSum(op.Mul(share, share), op.ints(1, 2), keepdims=1)
        t = op.Mul(t, op.Sqrt(op.Where(op.Equal(square, zero), one, square)))
    y, z, thrice = op.Div(s, t), None, op.Mul(op.number(3.0), eye)
    for step in range(iterations):
        towards = op.Mul(op.Sub(thrice, y if z is None else op.MatMul(z, y)), half)
        y = op.MatMul(y, towards)
        if step < iterations - 1:
            z = towards if z is None else op.MatMul(towards, z)
    return op.Mul(op.Sqrt(t), y)


def output_shape(s: Tensor, *, iterations: int, norm: str) -> Sequence[int]:
    return tuple(s.shape)


matrix_sqrt = Operator("MatrixSqrt", torch_form, onnx_form, output_shape=output_shape)
