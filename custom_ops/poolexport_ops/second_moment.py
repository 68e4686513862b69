"""SecondMoment: products of every two channels, summed or averaged over all locations; a covariance where centered.

    S = X X^T / m      X is (C, M), less the mean of every channel where centered; m is M, M - 1 or 1

The mean is taken away twice, since the first time it is rounded: channels of equal numbers then have no variance at
all.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._spd import length_node, places_node
from poolexport_ops.gram import unfused

#: What is taken off the number of locations for the divisor; None for no division.
DIVISORS = {"count": 0, "count_minus_one": 1, "one": None}


def torch_form(x: Tensor, *, centered: int, divisor: str) -> Tensor:
    """Second moments of the channels.

    Args:
        x: (N, C, M).
        centered: 1 for a covariance.
        divisor: "count" (M), "count_minus_one" (M - 1) or "one".

    Returns:
        (N, C, C).
    """
    if centered:
        x = x - x.mean(2, keepdim=True)
        x = x - x.mean(2, keepdim=True)
    products = x @ x.transpose(1, 2)
    less = DIVISORS[divisor]
    return products if less is None else products / (x.shape[2] - less)


def onnx_form(op: Body, x: ir.Value, *, centered: int, divisor: str) -> ir.Value:
    if centered:
        x = op.Sub(x, op.ReduceMean(x, op.ints(2), keepdims=1))
        x = op.Sub(x, op.ReduceMean(x, op.ints(2), keepdims=1))
    batch, channels, locations = (length_node(op, x, axis, last=axis == 2) for axis in range(3))
    # A transpose beside a float64 product does not load in onnxruntime 1.20: all cells are gathered in the other order.
    flat = op.Reshape(x, op.Concat(batch, op.Mul(channels, locations), axis=0))
    rows = op.Unsqueeze(places_node(op, locations), op.ints(1))
    columns = op.Unsqueeze(op.Mul(places_node(op, channels), locations), op.ints(0))
    products = unfused(op, op.MatMul(x, op.Gather(flat, op.Add(rows, columns), axis=1)))
    less = DIVISORS[divisor]
    if less is None:
        return products
    return op.Div(products, op.cast(op.Sub(locations, op.ints(less)), op.dtype))


def output_shape(x: Tensor, *, centered: int, divisor: str) -> Sequence[int]:
    return (*x.shape[:2], x.shape[1])


second_moment = Operator("SecondMoment", torch_form, onnx_form, output_shape=output_shape)
