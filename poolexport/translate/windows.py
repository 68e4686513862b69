"""Windows whose size is read from the input: whole planes become global pooling, others are gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import SymInt, Tensor

from poolexport.errors import ExportError
from poolexport.translate.computed import ComputedWindow
from poolexport_ops.adaptive_max_pool_with_indices import adaptive_max_pool_with_indices


def rules() -> dict[Any, Any]:
    aten = torch._C._nn
    table: dict[Any, Any] = {}
    for rank in (1, 2, 3):
        table[getattr(torch if rank == 1 else aten, f"avg_pool{rank}d")] = partial(_average, rank)
        table[getattr(torch, f"max_pool{rank}d")] = table[getattr(F, f"max_pool{rank}d")] = partial(_largest, rank)
        table[getattr(F, f"lp_pool{rank}d")] = partial(_powers, rank)
        table[getattr(F, f"max_pool{rank}d_with_indices")] = partial(_largest_and_where, rank)
        pool = getattr(torch if rank == 1 else aten, f"adaptive_max_pool{rank}d")
        table[pool] = table[getattr(F, f"adaptive_max_pool{rank}d_with_indices")] = partial(_adaptive, rank)
        table[getattr(F, f"adaptive_max_pool{rank}d")] = partial(_adaptive_values, rank)
    return table


def _per_axis(value: Any, rank: int) -> list[Any]:
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    return entries * rank if len(entries) == 1 else entries


def _whole(x: Tensor, window: ComputedWindow) -> list[int]:
    """The axes that a window spans from end to end."""
    sizes = zip(window.kernel, window.padding, range(-window.rank, 0))
    return [
        axis for size, pad, axis in sizes if isinstance(size, SymInt) and str(size) == str(x.shape[axis]) and not pad
    ]


def _window(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, rank: int) -> ComputedWindow:
    kernel = _per_axis(kernel, rank)
    steps = kernel if stride is None or (isinstance(stride, (list, tuple)) and not stride) else _per_axis(stride, rank)
    return ComputedWindow(kernel, steps, _per_axis(padding, rank), _per_axis(dilation, rank), ceil_mode)


def _without(window: ComputedWindow, whole: Sequence[int]) -> ComputedWindow:
    """The same window over axes of which some are already pooled."""
    kernel, stride = list(window.kernel), list(window.stride)
    for axis in whole:
        kernel[axis], stride[axis] = 1, 1
    return replace(window, kernel=kernel, stride=stride)


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
    window = _window(kernel_size, stride, padding, 1, ceil_mode, rank)
    whole = _whole(x, window)
    if not whole and not window.computed:
        return NotImplemented
    if whole:
        # The only window of an axis: its mean comes first, and what is left is a window of the other axes.
        x = x.mean(whole, keepdim=True) if divisor_override is None else x.sum(whole, keepdim=True)
        if len(whole) == rank:
            return x if divisor_override is None else x / divisor_override
        window = _without(window, whole)
    if window.computed:
        return window.average(x, count_include_pad, divisor_override)
    divisor = {} if divisor_override is None else {"divisor_override": divisor_override}
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    kernel, steps, pads = (list(part) for part in (window.kernel, window.stride, window.padding))
    return pool(x, kernel, steps, pads, ceil_mode, count_include_pad, **divisor)


def _powers(
    rank: int, x: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Any:
    """torch's Lp pooling, which calls the average pooling out of our sight."""
    if not _window(kernel_size, stride, 0, 1, ceil_mode, rank).computed:
        return NotImplemented
    means = _average(rank, x.pow(norm_type), kernel_size, stride, 0, ceil_mode)
    cells = 1
    for size in _per_axis(kernel_size, rank):
        cells = cells * size
    return (means.sign() * means.abs().relu() * cells).pow(1.0 / norm_type)


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
    window = _window(kernel_size, stride, padding, dilation, ceil_mode, rank)
    whole = _whole(x, window)
    if not whole and not window.computed and rank > 1:
        return NotImplemented
    if whole:
        x = x.amax(whole, keepdim=True)
        if len(whole) == rank:
            return x
        window = _without(window, whole)
    if window.computed:
        return window.largest(x)
    parts = (window.kernel, window.stride, window.padding, window.dilation)
    kernel, steps, pads, gaps = (list(part) for part in parts)
    if rank == 1:
        wide = F.max_pool2d(x.unsqueeze(-2), [1, *kernel], [1, *steps], [0, *pads], [1, *gaps], ceil_mode)
        return wide.squeeze(-2)
    return (F.max_pool2d, F.max_pool3d)[rank - 2](x, kernel, steps, pads, gaps, ceil_mode)


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
    window = _window(kernel_size, stride, padding, dilation, ceil_mode, rank)
    if len(_whole(x, window)) == rank:
        pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[rank - 1]
        return pool(x, [1] * rank, return_indices=True)
    return window.largest_and_where(x) if window.computed else NotImplemented


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
