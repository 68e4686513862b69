"""torch's own pooling layers: ours of the same names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from poolexport import nn as ours
from poolexport.adoption._entry import Entry, Foreign, Ours, Unlike, around, planes
from poolexport.errors import InputError

ROOT = "torch.nn"
UNBATCHED = "torch's layer also takes a map without a batch axis; ours does not"


def max_pool(found: Foreign) -> list[Ours]:
    names = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
    layer = _same_name(found)(**{name: found.get(name) for name in names})
    return [Ours(layer, "the largest cell of every window", _around(layer), (UNBATCHED,))]


def average(found: Foreign) -> list[Ours]:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    options = {name: found.get(name) for name in names}
    layer = _same_name(found)(**options, divisor_override=found.get("divisor_override", None))
    return [Ours(layer, "the mean of every window", _around(layer), (UNBATCHED,))]


def lp(found: Foreign) -> list[Ours]:
    options = {name: found.get(name) for name in ("norm_type", "kernel_size", "stride", "ceil_mode")}
    layer = _same_name(found)(**options, signed=True)
    meaning = "the root of the sum of powers of every window, with the signs of the cells"
    return [Ours(layer, meaning, _around(layer), (UNBATCHED,))]


def adaptive_average(found: Foreign) -> list[Ours]:
    layer = _same_name(found)(found.get("output_size"))
    return [Ours(layer, "the mean of every bin", planes(layer.rank), (UNBATCHED,))]


def adaptive_max(found: Foreign) -> list[Ours]:
    layer = _same_name(found)(found.get("output_size"), found.get("return_indices"))
    return [Ours(layer, "the largest cell of every bin", planes(layer.rank), (UNBATCHED,))]


def max_unpool(found: Foreign) -> list[Ours]:
    layer = _same_name(found)(found.get("kernel_size"), found.get("stride"), found.get("padding"))
    rank = layer.rank

    def indices(x: Tensor) -> tuple[Tensor]:
        cells = math.prod(layer._lengths(x, None))
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randperm(cells, generator=generator)[: x[0, 0].numel()] for _ in range(x.shape[0] * x.shape[1])]
        return (torch.stack(rows).reshape(x.shape),)

    shapes = ((2, 3, *(4, 5, 3)[:rank]), (1, 2, *(5, 4, 4)[:rank]))
    return [Ours(layer, "every cell back to its place", shapes, (UNBATCHED,), companions=indices)]


def fractional_max(found: Foreign) -> list[Ours]:
    samples = found.get("_random_samples")
    double = found.dtype == torch.float64
    if found.dtype not in (torch.float32, torch.float64):
        raise Unlike(f"in a {str(found.dtype).removeprefix('torch.')} model torch places its windows in that type")
    if samples is None and found.choice != "fixed":
        raise InputError(
            "without _random_samples it draws its regions anew at every call, in eval mode too, and a file can hold "
            f"one draw only; {found.chosen('fixed')} keeps one fixed draw, which draw_samples() of our layer "
            "can replace by others"
        )
    names = ("kernel_size", "output_size", "output_ratio", "return_indices")
    layer = _same_name(found)(
        **{name: found.get(name) for name in names},
        _random_samples=samples,
        precision="float64" if double else "float32",
    )
    # Windows are placed in the type of the input, so they are compared in that of the model.
    dtype = torch.float64 if double else torch.float32
    lengths = [(o or 3) + 2 * k + 3 + axis for axis, (o, k) in enumerate(zip(layer.lengths, layer.kernel_shape))]
    rows, channels = (2, 3) if samples is None else samples.shape[:2]
    shapes = ((rows, channels, *lengths), (1, channels, *(n + 1 for n in lengths)))
    if samples is not None:
        meaning = "the largest cell of windows placed by the layer's samples"
        return [Ours(layer, meaning, shapes, (UNBATCHED,), name="fixed", dtype=dtype)]
    meaning = "the largest cell of windows drawn at random; in eval mode those of one fixed draw"
    notes = (UNBATCHED, "compared in training mode, where both draw the same; in eval mode torch's layer still draws")
    return [Ours(layer, meaning, shapes, notes, name="fixed", training=True, dtype=dtype)]


def _same_name(found: Foreign) -> Callable[..., Any]:
    return getattr(ours, type(found.module).__name__)


def _around(layer: Any) -> tuple[tuple[int, ...], ...]:
    window = layer.window
    return around(window.extent, window.strides)


def _entries(name: str, convert: Callable[[Foreign], list[Ours]], ranks: str = "123") -> list[Entry]:
    return [Entry(f"{name}{rank}d", convert, (f"{name}{rank}d",), ROOT) for rank in ranks]


ENTRIES = (
    *_entries("MaxPool", max_pool),
    *_entries("AvgPool", average),
    *_entries("LPPool", lp),
    *_entries("AdaptiveAvgPool", adaptive_average),
    *_entries("AdaptiveMaxPool", adaptive_max),
    *_entries("MaxUnpool", max_unpool),
    *_entries("FractionalMaxPool", fractional_max, "23"),
)
