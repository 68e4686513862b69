"""Max unpooling: cells scattered along flattened planes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from poolexport.translate._writing import Size, Write, Writer


def entries() -> dict[str, Write]:
    return {f"aten::max_unpool{rank}d": partial(_unpool, rank) for rank in (2, 3)}


def _unpool(rank: int, writer: Writer, self: ir.Value, indices: ir.Value, output_size: list[Size], **_: Any) -> Any:
    op = writer.op
    lead = len(self.shape) - rank if self.shape is not None else 2
    planes = op.Shape(self, start=0, end=lead)
    lengths = writer.sizes(output_size)
    # Counted, because -1 has no meaning where the batch is empty.
    cells = op.ReduceProd(op.Shape(self, start=lead, end=lead + rank), op.ints(0), keepdims=1)
    flat = op.Concat(planes, cells, axis=0)
    zeros = op.ConstantOfShape(
        op.Concat(planes, op.ReduceProd(lengths, op.ints(0), keepdims=1), axis=0),
        value=ir.tensor(np.zeros(1, op.dtype.numpy())),
    )
    y = op.ScatterElements(zeros, op.Reshape(indices, flat), op.Reshape(self, flat), axis=lead)
    return op.Reshape(y, op.Concat(planes, lengths, axis=0))
