"""Fractional max pooling with given samples; torch's samples have one place per plane and axis."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import SymInt, Tensor

from poolexport.errors import RandomnessError
from poolexport.translate._writing import Write, Writer, fixed
from poolexport_ops.fractional_max_pool_with_indices import fractional_max_pool_with_indices

REFUSAL = "a fractional max pooling draws its regions anew in every run; give _random_samples, or a seed"


def entries() -> dict[str, Write]:
    return {f"aten::fractional_max_pool{rank}d": partial(_pool, rank) for rank in (2, 3)}


def rules(seed: int | None) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    for rank in (2, 3):
        table[getattr(F, f"fractional_max_pool{rank}d_with_indices")] = partial(_with_indices, rank, seed)
        table[getattr(F, f"fractional_max_pool{rank}d")] = partial(_values, rank, seed)
    return table


def draw(seed: int, channels: int, rank: int) -> np.ndarray:
    """One sample per channel and axis, (1, C, rank)."""
    return np.random.default_rng(seed).random((1, channels, rank), np.float32)


def _options(rank: int, kernel: Any, size: list[int], ratio: str, precision: str) -> dict[str, Any]:
    kernel = list(kernel) if isinstance(kernel, (list, tuple)) else [kernel] * rank
    return {
        "kernel_shape": kernel,
        "output_size": size,
        "output_ratio": ratio,
        "regions": "torch",
        "overlapping": 0,
        "precision": precision,
        "per_plane": 1,
    }


def _pool(
    rank: int, writer: Writer, self: ir.Value, kernel_size: list[Any], output_size: list[Any], random_samples: ir.Value
) -> Any:
    kernel = fixed(kernel_size, "the kernel of a fractional pooling", rank)
    size = fixed(output_size, "the output size of a fractional pooling", rank)
    precision = "float64" if random_samples.dtype == ir.DataType.DOUBLE else "float32"
    options = _options(rank, kernel, size, "," * (rank - 1), precision)
    samples = writer.op.cast(random_samples, ir.DataType.DOUBLE)
    samples.type = ir.TensorType(ir.DataType.DOUBLE)
    return writer.batched(self, rank, lambda x: writer.call(fractional_max_pool_with_indices, x, samples, **options))


def _with_indices(
    rank: int,
    seed: int | None,
    x: Tensor,
    kernel_size: Any,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = True,
    _random_samples: Tensor | None = None,
) -> Any:
    """Lengths that torch's own operator would fix, and samples from a seed."""
    dynamic = any(isinstance(n, SymInt) for n in x.shape)
    drawn = _random_samples is None and seed is not None
    if not dynamic and not drawn:
        return NotImplemented
    if drawn:
        channels = x.shape[-rank - 1]
        known = 1 if isinstance(channels, SymInt) else channels
        _random_samples = torch.from_numpy(draw(seed, known, rank))  # type: ignore[arg-type]
    if _random_samples is None:
        if output_size is not None and rank == 2:
            # The table's turn, which may know a seed; in three dimensions torch cannot trace dynamic sizes.
            return NotImplemented
        raise RandomnessError(REFUSAL)
    sizes, ratios = _per_axis(output_size, rank), _per_axis(output_ratio, rank)
    precision = "float64" if _random_samples.dtype == torch.float64 else "float32"
    given = [0] * rank if output_size is None else [int(n) for n in sizes]
    shares = ",".join("" if output_size is not None else repr(float(r)) for r in ratios)
    options = _options(rank, kernel_size, given, shares, precision)
    whole = x if x.dim() == rank + 2 else x.unsqueeze(0)
    results = fractional_max_pool_with_indices(whole, _random_samples.double(), **options)
    return results if x.dim() == rank + 2 else tuple(y.squeeze(0) for y in results)


def _values(rank: int, seed: int | None, *args: Any, return_indices: bool = False, **kwargs: Any) -> Any:
    result = _with_indices(rank, seed, *args, **kwargs)
    return result if result is NotImplemented or return_indices else result[0]


def _per_axis(value: Any, rank: int) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * rank
