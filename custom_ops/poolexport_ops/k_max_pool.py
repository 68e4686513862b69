"""KMaxPool: the k largest cells of every sequence, in descending order or in the order in which they appear.

Of equal cells the first is taken first: ONNX's TopK promises that and torch's does not, so the torch form is a stable
sort. A NaN makes all k results of its sequence NaN; where TopK would put it depends on the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator


def torch_form(x: Tensor, *, k: int, by_position: bool) -> Tensor:
    """The k largest cells along the last axis.

    Args:
        x: (N, C, L).
        k: how many, at most L.
        by_position: keep the order of the sequence; otherwise the largest comes first.

    Returns:
        (N, C, k).
    """
    if x.shape[-1] < k:
        raise ValueError(f"k is {k}, but the input has only {x.shape[-1]} locations; use a smaller k")
    nan = x.isnan()
    cells = x.masked_fill(nan, 0.0)
    places = cells.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]
    places = places.sort(dim=-1).values if by_position else places
    return cells.gather(-1, places).masked_fill(nan.any(-1, keepdim=True), float("nan"))


def onnx_form(op: Body, x: ir.Value, *, k: int, by_position: bool) -> ir.Value:
    zero = op.number(0.0)
    nan = op.IsNaN(x)
    # One more sequence of zeros: on an empty batch TopK of onnxruntime before 1.31 divides by 0 and ends the process.
    one_more = op.Expand(zero, op.Concat(op.ints(1), op.Shape(x, start=1), axis=0))
    cells = op.Concat(op.Where(nan, zero, x), one_more, axis=0)
    spoilt = op.ReduceSum(op.Where(nan, x, zero), op.ints(2), keepdims=1)
    values, places = op.TopK(cells, op.ints(k), axis=-1, largest=1, sorted=1, outputs=2)
    if by_position:
        _, order = op.TopK(places, op.ints(k), axis=-1, largest=0, sorted=1, outputs=2)
        values = op.GatherElements(values, order, axis=-1)
    return op.Add(op.Slice(values, op.ints(0), op.ints(-1), op.ints(0)), spoilt)


def output_shape(x: Tensor, *, k: int, by_position: bool) -> Sequence[int]:
    return (*x.shape[:-1], k)


k_max_pool = Operator("KMaxPool", torch_form, onnx_form, output_shape=output_shape)
