"""Average pooling: no ceil mode in the graph, and the divisor as torch counts it."""

from __future__ import annotations

from functools import partial
from typing import Any

import onnx_ir as ir

from poolexport.translate._writing import Size, Write, Writer, fixed
from poolexport_ops import Window
from poolexport_ops.average_pool import average_pool


def entries() -> dict[str, Write]:
    return {f"aten::avg_pool{rank}d": partial(_average, rank) for rank in (1, 2, 3)}


def _average(
    rank: int,
    writer: Writer,
    self: ir.Value,
    kernel_size: list[Size],
    stride: list[Size],
    padding: list[Size],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
) -> Any:
    kernel = fixed(kernel_size, "the kernel of an average pooling", rank)
    steps = fixed(stride, "the stride of an average pooling", rank) if stride else kernel
    window = Window.from_torch(rank, kernel, steps, fixed(padding, "padding", rank), 1, ceil_mode)
    counted = list(window.begin * 2 if count_include_pad else (0,) * (2 * rank))
    divisor = 0 if divisor_override is None else fixed(divisor_override, "divisor_override", 1)[0]
    # onnxruntime has no float64 kernel of AveragePool.
    standard = not window.padded and not divisor and writer.op.dtype != ir.DataType.DOUBLE

    def write(x: ir.Value) -> ir.Value:
        if standard:
            return writer.op.AveragePool(x, kernel_shape=window.kernel_shape, strides=window.strides)
        return writer.call(average_pool, x, **window.onnx(), counted_pads=counted, divisor_override=divisor)

    return writer.batched(self, rank, write)
