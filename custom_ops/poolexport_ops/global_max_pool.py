"""GlobalMaxPool: the largest cell of every plane.

    y = max(x)      over all M locations of one channel; a NaN makes y NaN, a plane of -inf gives -inf

On the CPU provider ReduceMax passes over NaN; adding the sum of the NaN cells alone, 0 where there are none, puts it
back. The standard GlobalMaxPool also turns -inf into the lowest finite number, and has no float64 kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator


def torch_form(x: Tensor, *, axes: Sequence[int], keepdims: int = 1) -> Tensor:
    """Maximum over whole axes; cells that share it share its gradient.

    Args:
        x: (N, C, *spatial).
        axes: the axes to look over, counted from the front.
        keepdims: 1 keeps them with length 1, 0 removes them.

    Returns:
        (N, C, 1, ...), or (N, C) without ``keepdims``.
    """
    return x.amax(dim=tuple(axes), keepdim=bool(keepdims))


def onnx_form(op: Body, x: ir.Value, *, axes: Sequence[int], keepdims: int) -> ir.Value:
    largest = op.ReduceMax(x, op.ints(*axes), keepdims=keepdims)
    spoilt = op.Where(op.IsNaN(x), x, op.number(0.0))
    return op.Add(largest, op.ReduceSum(spoilt, op.ints(*axes), keepdims=keepdims))


def output_shape(x: Tensor, *, axes: Sequence[int], keepdims: int) -> Sequence[int]:
    lengths = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
    return lengths if keepdims else [n for axis, n in enumerate(lengths) if axis not in axes]


global_max_pool = Operator("GlobalMaxPool", torch_form, onnx_form, output_shape=output_shape)
