"""Windows whose size is read from the input: whole planes become global pooling, other sizes are refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import SymInt, Tensor

from poolexport.errors import ExportError
from poolexport_ops.adaptive_max_pool_with_indices import adaptive_max_pool_with_indices


def rules() -> dict[Any, Any]:
    aten = torch._C._nn
    table: dict[Any, Any] = {}
    for rank in (1, 2, 3):
        table[getattr(torch if rank == 1 else aten, f"avg_pool{rank}d")] = partial(_average, rank)
        table[getattr(torch, f"max_pool{rank}d")] = table[getattr(F, f"max_pool{rank}d")] = partial(_largest, rank)
        table[getattr(F, f"max_pool{rank}d_with_indices")] = partial(_largest_and_where, rank)
        pool = getattr(torch if rank == 1 else aten, f"adaptive_max_pool{rank}d")
        table[pool] = table[getattr(F, f"adaptive_max_pool{rank}d_with_indices")] = partial(_adaptive, rank)
        table[getattr(F, f"adaptive_max_pool{rank}d")] = partial(_adaptive_values, rank)
    return table


def _per_axis(value: Any, rank: int) -> list[Any]:
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    return entries * rank if len(entries) == 1 else entries


def _whole(x: Tensor, kernel: Sequence[Any], padding: Any, rank: int) -> list[int]:
    """The axes that a window spans from end to end; a kernel that follows the input in another way is refused."""
    pads, axes = _per_axis(padding, rank), []
    for axis, (size, pad) in enumerate(zip(kernel, pads)):
        if not isinstance(size, SymInt):
            continue
        length = x.shape[axis - rank]
        if str(size) != str(length) or pad:
            raise ExportError(
                f"the kernel of a pooling is computed from the input's size (spatial axis {axis}: {size} of {length}), "
                "which a graph of standard operators cannot follow; use an adaptive pooling, a global one, or a number"
            )
        axes.append(axis - rank)
    return axes


def _average(
    rank: int,
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    kernel = _per_axis(kernel_size, rank)
    whole = _whole(x, kernel, padding, rank)
    if not whole:
        return NotImplemented
    # The only window of an axis: its mean comes first, and what is left is a window of the other axes.
    x = x.mean(whole, keepdim=True) if divisor_override is None else x.sum(whole, keepdim=True)
    if len(whole) == rank:
        return x if divisor_override is None else x / divisor_override
    steps = _per_axis(stride, rank) if stride else list(kernel)
    for axis in whole:
        kernel[axis], steps[axis] = 1, 1
    divisor = {} if divisor_override is None else {"divisor_override": divisor_override}
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    return pool(x, kernel, steps, padding, ceil_mode, count_include_pad, **divisor)


def _largest(
    rank: int,
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices:
        return _largest_and_where(rank, x, kernel_size, stride, padding, dilation, ceil_mode)
    kernel = _per_axis(kernel_size, rank)
    whole = _whole(x, kernel, padding, rank)
    if not whole and rank > 1:
        return NotImplemented
    steps = _per_axis(stride, rank) if stride else list(kernel)
    if whole:
        x = x.amax(whole, keepdim=True)
        if len(whole) == rank:
            return x
        for axis in whole:
            kernel[axis], steps[axis] = 1, 1
    if rank == 1:
        pads, gaps = _per_axis(padding, 1), _per_axis(dilation, 1)
        wide = F.max_pool2d(x.unsqueeze(-2), [1, *kernel], [1, *steps], [0, *pads], [1, *gaps], ceil_mode)
        return wide.squeeze(-2)
    return (F.max_pool2d, F.max_pool3d)[rank - 2](x, kernel, steps, padding, dilation, ceil_mode)


def _largest_and_where(
    rank: int,
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = True,
) -> Any:
    whole = _whole(x, _per_axis(kernel_size, rank), padding, rank)
    if not whole:
        return NotImplemented
    if len(whole) < rank:
        raise ExportError(
            "a max pooling with indices spans one axis of the input and a window of another, which has no form; "
            "pool the axes one after the other, without indices"
        )
    pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[rank - 1]
    return pool(x, [1] * rank, return_indices=True)


def _adaptive_values(rank: int, x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    result = _adaptive(rank, x, output_size)
    return result if result is NotImplemented or return_indices else result[0]


def _adaptive(rank: int, x: Tensor, output_size: Any, return_indices: bool = True) -> Any:
    sizes = _per_axis(output_size, rank)
    sizes = [x.shape[axis - rank] if size is None else size for axis, size in enumerate(sizes)]
    if not any(isinstance(size, SymInt) for size in sizes):
        return NotImplemented
    kept = [isinstance(size, SymInt) and str(size) == str(x.shape[axis - rank]) for axis, size in enumerate(sizes)]
    if any(isinstance(size, SymInt) and not keep for size, keep in zip(sizes, kept)):
        raise ExportError(
            f"the output size of an adaptive pooling is computed from the input's size: {tuple(sizes)}; use a number, "
            "or None to keep the axis"
        )
    bins = [0 if keep else int(size) for size, keep in zip(sizes, kept)]
    if x.dim() == rank + 2:
        return adaptive_max_pool_with_indices(x, output_size=bins)
    return tuple(y.squeeze(0) for y in adaptive_max_pool_with_indices(x.unsqueeze(0), output_size=bins))
