"""SubsampledGram: Gram of two maps of different sizes, of which the larger is read at evenly spaced cells.

    g_cd = sum(a_c,p(i) b_d,q(i))      over the locations i of the smaller map, the one with fewer of them
    p or q along an axis: round(1 + i (n - 1) / (m - 1)), counted from 1, halves upwards; the last cell where m = 1

Which map is the smaller depends on lengths that only the running graph knows.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops import gram
from poolexport_ops._body import Body
from poolexport_ops._operator import Operator


def torch_form(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the locations of the smaller map of the products of all pairs of channels.

    Args:
        a: (N, C, H, W).
        b: (N, D, H', W'), of the type of ``a``.

    Returns:
        (N, C, D).
    """
    target = min(a.shape[2:], b.shape[2:], key=lambda lengths: lengths[0] * lengths[1])
    picked = [_picked(_picked(x, 2, target[0]), 3, target[1]).flatten(2) for x in (a, b)]
    return gram.torch_form(*picked)


def _picked(x: Tensor, axis: int, count: int) -> Tensor:
    last = x.shape[axis] - 1
    if count == 1:
        return x.narrow(axis, last, 1)
    steps = torch.arange(count, device=x.device)
    return x.index_select(axis, (2 * last * steps + count - 1) // (2 * (count - 1)))


def onnx_form(op: Body, a: ir.Value, b: ir.Value) -> ir.Value:
    rows, columns = ([_length(op, x, axis) for x in (a, b)] for axis in (2, 3))
    first = op.LessOrEqual(op.Mul(rows[0], columns[0]), op.Mul(rows[1], columns[1]))
    height, width = (op.Where(first, *lengths) for lengths in (rows, columns))
    flat = []
    for x, h, w in zip((a, b), rows, columns):
        picked = op.Gather(op.Gather(x, _positions(op, h, height), axis=2), _positions(op, w, width), axis=3)
        head = op.Slice(op.Shape(x), op.ints(0), op.ints(2), op.ints(0))
        reshaped = op.Reshape(picked, op.Concat(head, op.Mul(height, width), axis=0))
        flat.append(op.cast(reshaped, ir.DataType.DOUBLE))
    return op.cast(gram.products(op, *flat), op.dtype)


def _positions(op: Body, n: ir.Value, count: ir.Value) -> ir.Value:
    """Where ``count`` of n cells are."""
    one, two = op.ints(1), op.ints(2)
    last, gaps = op.Sub(n, one), op.Sub(count, one)
    steps = op.Range(*(op.Squeeze(value, op.ints(0)) for value in (op.ints(0), count, one)))
    spread = op.Div(op.Add(op.Mul(op.Mul(two, last), steps), gaps), op.Mul(two, op.Max(gaps, one)))
    return op.Where(op.Equal(count, one), last, spread)


def _length(op: Body, x: ir.Value, axis: int) -> ir.Value:
    return op.Slice(op.Shape(x), op.ints(axis), op.ints(axis + 1), op.ints(0))


def output_shape(a: Tensor, b: Tensor) -> Sequence[int]:
    return (*a.shape[:2], b.shape[1])


subsampled_gram = Operator("SubsampledGram", torch_form, onnx_form, output_shape=output_shape, widen=False)
