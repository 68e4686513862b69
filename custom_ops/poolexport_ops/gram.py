"""Gram: the products of all pairs of channels, summed over the locations.

    g_cd = a_c1 b_d1 + ... + a_cM b_dM

Every product and the sum are made in float64, so that a float32 sum which cancels does cancel.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator


def torch_form(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the locations of the products of all pairs of channels.

    Args:
        a: (N, C, M).
        b: (N, D, M), of the type of ``a``.

    Returns:
        (N, C, D).
    """
    return (a.double() @ b.double().transpose(1, 2)).to(a.dtype)


def onnx_form(op: Body, a: ir.Value, b: ir.Value) -> ir.Value:
    return op.cast(products(op, *(op.cast(value, ir.DataType.DOUBLE) for value in (a, b))), op.dtype)


def products(op: Body, a: ir.Value, b: ir.Value) -> ir.Value:
    """The matrix product of (N, C, M) and the transpose of (N, D, M), both float64."""
    turned = op.Transpose(b, perm=[0, 2, 1])
    # onnxruntime 1.20 makes a transpose beside a product one node with it, which it cannot run in float64.
    return unfused(op, op.MatMul(a, op.Reshape(turned, op.Shape(turned))))


def unfused(op: Body, product: ir.Value) -> ir.Value:
    """The product itself, read twice: a constant that divides it later must stay a node of its own.

    onnxruntime folds a constant factor into a product that nothing else reads, as a float32.
    """
    return op.Where(op.IsNaN(product), product, product)


def output_shape(a: Tensor, b: Tensor) -> Sequence[int]:
    return (*a.shape[:2], b.shape[1])


gram = Operator("Gram", torch_form, onnx_form, output_shape=output_shape, widen=False)
