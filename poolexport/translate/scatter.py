"""Sums into places that may repeat: always ScatterElements, because onnxruntime loses updates in ScatterND."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from poolexport.errors import ExportError
from poolexport.translate._writing import Write, Writer
from poolexport_ops._body import Body


def entries() -> dict[str, Write]:
    return {"aten::index_add": _index_add}


def accumulating() -> dict[str, Write]:
    """Entries for calls with ``accumulate``; torch's own translation is right for all others."""
    return {"aten::index_put": _index_put, "aten::_unsafe_index_put": _index_put}


def _index_add(
    writer: Writer, self: ir.Value, dim: int, index: ir.Value, source: ir.Value, alpha: float = 1
) -> ir.Value:
    op = writer.op
    rank = len(self.shape) if self.shape is not None else 1
    if alpha != 1:
        source = op.Mul(source, op.number(alpha))
    if not rank:
        return op.Reshape(_index_add(writer, _vector(op, self), 0, index, _vector(op, source)), op.ints())
    axis = dim % rank
    places = op.Reshape(index, op.ints(*(-1 if a == axis else 1 for a in range(rank))))
    places = op.Expand(op.cast(places, ir.DataType.INT64), op.Shape(source))
    return _added(op, self, places, source, axis)


def _added(op: Body, data: ir.Value, places: ir.Value, updates: ir.Value, axis: int) -> ir.Value:
    if op.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return op.ScatterElements(data, places, updates, axis=axis, reduction="add")
    # onnxruntime has no half-precision kernel that adds.
    wide = [op.cast(value, ir.DataType.FLOAT) for value in (data, updates)]
    return op.cast(op.ScatterElements(wide[0], places, wide[1], axis=axis, reduction="add"), op.dtype)


def _vector(op: Body, x: ir.Value) -> ir.Value:
    y = op.Reshape(x, op.ints(-1))
    y.type, y.shape = x.type, ir.Shape([None])
    return y


def _index_put(
    writer: Writer, self: ir.Value, indices: list[ir.Value | None], values: ir.Value, accumulate: bool
) -> ir.Value:
    assert accumulate
    op = writer.op
    rank = len(self.shape) if self.shape is not None else len(indices)
    indices = [*indices, *[None] * (rank - len(indices))]
    indexed = [axis for axis, index in enumerate(indices) if index is not None]
    places = [index for index in indices if index is not None]
    if any(place.dtype not in (ir.DataType.INT64, ir.DataType.INT32) for place in places):
        raise ExportError(
            "index_put with accumulate=True takes whole numbers as places, not a mask; use mask.nonzero()"
        )
    rest = [axis for axis in range(rank) if axis not in indexed]
    order = [*indexed, *rest]
    together = indexed == list(range(indexed[0], indexed[0] + len(indexed)))
    shape = op.Shape(self)
    lengths = [op.Slice(shape, op.ints(axis), op.ints(axis + 1), op.ints(0)) for axis in range(rank)]
    place = None
    for axis, index in zip(indexed, places):
        index = op.cast(index, ir.DataType.INT64)
        index = op.Where(op.Less(index, op.constant(np.array(0))), op.Add(index, lengths[axis]), index)
        place = index if place is None else op.Add(op.Mul(place, lengths[axis]), index)
    assert place is not None
    width = max((len(index.shape) for index in places if index.shape is not None), default=1)
    rest_shape = op.Concat(*(lengths[axis] for axis in rest), axis=0) if rest else op.Reshape(op.ints(), op.ints(0))
    before = indexed[0] if together else 0
    # Values lie where torch puts them: the places' axes instead of the first indexed one, or in front.
    parts = [*(lengths[axis] for axis in rest[:before]), op.Shape(place), *(lengths[axis] for axis in rest[before:])]
    values = op.Expand(values, op.Concat(*parts, axis=0))
    if before:
        front = [*range(before, before + width), *range(before), *range(before + width, width + len(rest))]
        values = op.Transpose(values, perm=front)
    moved = op.Transpose(self, perm=order)
    one = op.ints(-1)
    flat_shape = op.Concat(one, op.ReduceProd(rest_shape, op.ints(0), keepdims=1) if rest else op.ints(1), axis=0)
    rows = op.Reshape(values, flat_shape)
    flat_places = op.Expand(op.Reshape(place, op.ints(-1, 1)), op.Shape(rows))
    y = _added(op, op.Reshape(moved, flat_shape), flat_places, rows, 0)
    y = op.Reshape(y, op.Shape(moved))
    return op.Transpose(y, perm=[order.index(axis) for axis in range(rank)])
