"""Fractional max pooling with given samples; torch's samples have one place per plane and axis."""

from __future__ import annotations

from functools import partial
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import SymInt, Tensor

from poolexport.errors import ExportError, RandomnessError
from poolexport.translate._writing import Write, Writer, fixed
from poolexport_ops.fractional_max_pool_with_indices import fractional_max_pool_with_indices

ADVICE = "give _random_samples, or a seed"


def entries() -> dict[str, Write]:
    return {f"aten::fractional_max_pool{rank}d": partial(_pool, rank) for rank in (2, 3)}


def rules() -> dict[Any, Any]:
    return {
        F.fractional_max_pool2d_with_indices: partial(_by_ratio, 2),
        F.fractional_max_pool3d_with_indices: partial(_by_ratio, 3),
    }


def _options(rank: int, kernel: Any, size: list[int], ratio: list[str], precision: str) -> dict[str, Any]:
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
    producer = random_samples.producer()
    if producer is not None and "Random" in producer.op_type:
        raise RandomnessError(f"a fractional max pooling draws its regions anew in every run; {ADVICE}")
    kernel = fixed(kernel_size, "the kernel of a fractional pooling", rank)
    size = fixed(output_size, "the output size of a fractional pooling", rank)
    precision = "float64" if random_samples.dtype == ir.DataType.DOUBLE else "float32"
    options = _options(rank, kernel, size, [""] * rank, precision)
    samples = writer.op.cast(random_samples, ir.DataType.DOUBLE)
    samples.type = ir.TensorType(ir.DataType.DOUBLE)
    return writer.batched(
        self, rank, lambda x: writer.call(fractional_max_pool_with_indices, x, samples, **options)
    )


def _by_ratio(
    rank: int,
    x: Tensor,
    kernel_size: Any,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """A ratio of an axis whose length is dynamic, which torch's own operator cannot take."""
    if output_size is not None or not any(isinstance(n, SymInt) for n in x.shape[-rank:]):
        return NotImplemented
    if _random_samples is None:
        raise RandomnessError(f"a fractional max pooling draws its regions anew in every run; {ADVICE}")
    ratios = list(output_ratio) if isinstance(output_ratio, (list, tuple)) else [output_ratio] * rank
    if len(ratios) != rank:
        raise ExportError(f"output_ratio must be a number or a tuple of {rank}, got {output_ratio!r}")
    precision = "float64" if _random_samples.dtype == torch.float64 else "float32"
    options = _options(rank, kernel_size, [0] * rank, [repr(float(r)) for r in ratios], precision)
    whole = x if x.dim() == rank + 2 else x.unsqueeze(0)
    results = fractional_max_pool_with_indices(whole, _random_samples.double(), **options)
    return results if x.dim() == rank + 2 else tuple(y.squeeze(0) for y in results)
