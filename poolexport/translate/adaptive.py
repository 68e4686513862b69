"""Adaptive pooling: the graph computes the bins from the input that it is given."""

from __future__ import annotations

from functools import partial
from typing import Any

import onnx_ir as ir

from poolexport.errors import ExportError
from poolexport.translate._writing import Size, Write, Writer, follows
from poolexport_ops.adaptive_average_pool import adaptive_average_pool
from poolexport_ops.adaptive_max_pool_with_indices import adaptive_max_pool_with_indices


def entries() -> dict[str, Write]:
    table: dict[str, Write] = {}
    for rank in (1, 2, 3):
        table[f"aten::adaptive_avg_pool{rank}d"] = partial(_average, rank)
        table[f"aten::adaptive_max_pool{rank}d"] = partial(_largest, rank)
    for rank in (2, 3):
        table[f"aten::_adaptive_avg_pool{rank}d"] = partial(_average, rank)
    return table


def _bins(x: ir.Value, rank: int, output_size: list[Size]) -> list[int]:
    """Bins per axis, 0 for an axis that is kept.

    Raises:
        ExportError: a size is neither a number nor the length of its own axis.
    """
    sizes = list(output_size) * rank if len(output_size) == 1 else list(output_size)
    bins = []
    for axis, size in enumerate(sizes):
        if isinstance(size, int):
            bins.append(size)
        elif follows(size, x, 2 + axis):
            bins.append(0)
        else:
            raise ExportError(
                f"the output size of an adaptive pooling is computed from the input's size (spatial axis {axis}); use "
                "a number, or None to keep the axis"
            )
    return bins


def _average(rank: int, writer: Writer, self: ir.Value, output_size: list[Size]) -> Any:
    def write(x: ir.Value) -> ir.Value:
        bins = _bins(x, rank, output_size)
        if set(bins) == {1}:
            return writer.op.ReduceMean(x, writer.op.ints(*range(2, 2 + rank)), keepdims=1)
        return writer.call(adaptive_average_pool, x, output_size=bins)

    return writer.batched(self, rank, write)


def _largest(rank: int, writer: Writer, self: ir.Value, output_size: list[Size]) -> Any:
    return writer.batched(
        self, rank, lambda x: writer.call(adaptive_max_pool_with_indices, x, output_size=_bins(x, rank, output_size))
    )
