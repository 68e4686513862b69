"""Max pooling. Values alone are the standard MaxPool with explicit end pads instead of its ceil mode."""

from __future__ import annotations

from functools import partial
from typing import Any

import onnx_ir as ir

from poolexport.translate._writing import Size, Write, Writer, fixed
from poolexport_ops import Window
from poolexport_ops.max_pool import max_pool
from poolexport_ops.max_pool_with_indices import max_pool_with_indices


def entries() -> dict[str, Write]:
    table: dict[str, Write] = {}
    for rank in (1, 2, 3):
        table[f"aten::max_pool{rank}d"] = partial(_values, rank)
        table[f"aten::max_pool{rank}d_with_indices"] = partial(_with_indices, rank)
    return table


def _window(
    rank: int, kernel_size: list[Size], stride: list[Size], padding: list[Size], dilation: list[Size], ceil_mode: bool
) -> Window:
    kernel = fixed(kernel_size, "the kernel of a max pooling", rank)
    steps = fixed(stride, "the stride of a max pooling", rank) if stride else kernel
    return Window.from_torch(
        rank, kernel, steps, fixed(padding, "padding", rank), fixed(dilation, "dilation", rank), ceil_mode
    )


def _values(rank: int, writer: Writer, self: ir.Value, **options: Any) -> Any:
    window = _window(rank, **options)

    def write(x: ir.Value) -> ir.Value:
        # onnxruntime refuses a pad that is not smaller than the kernel, though a dilated window may span it.
        if any(pad >= kernel for pad, kernel in zip(window.pads, window.kernel_shape * 2)):
            return writer.call(max_pool, x, **window.onnx())
        return writer.op.MaxPool(x, **window.onnx(), ceil_mode=0, storage_order=0)

    return writer.batched(self, rank, write)


def _with_indices(rank: int, writer: Writer, self: ir.Value, **options: Any) -> Any:
    window = _window(rank, **options)
    return writer.batched(self, rank, lambda x: writer.call(max_pool_with_indices, x, **window.onnx()))
