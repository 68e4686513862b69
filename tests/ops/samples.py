"""For every operator the calls to try on a window and an input: attributes, and all tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from poolexport_ops import Window

Call = tuple[dict[str, Any], tuple[Tensor, ...]]

PATTERNS = ("normal", "ties", "cliff", "sparse", "zeros", "nan", "-inf")


def samples(name: str, window: Window, x: Tensor) -> Iterator[Call]:
    """Calls of the named operator on ``x``, with attributes after the window where it has one."""
    yield from SAMPLES[name](window, x)


def _windowed(*others: Callable[[Window, Tensor], Tensor], **attributes: Any) -> Callable[[Window, Tensor], list[Call]]:
    def calls(window: Window, x: Tensor) -> list[Call]:
        return [({**window.onnx(), **attributes}, (x, *(other(window, x) for other in others)))]

    return calls


def _all(*makers: Callable[[Window, Tensor], list[Call]]) -> Callable[[Window, Tensor], list[Call]]:
    return lambda window, x: [call for maker in makers for call in maker(window, x)]


def _itself(_: Window, x: Tensor) -> Tensor:
    return x


def _positive(_: Window, x: Tensor) -> Tensor:
    return x.relu()


def _per_channel(*values: float) -> Callable[[Window, Tensor], Tensor]:
    return lambda _, x: torch.tensor(values, dtype=x.dtype)


def _per_cell(window: Window, x: Tensor) -> Tensor:
    """One weight per channel and cell, a few of them 0."""
    steps = torch.arange(x.shape[1] * window.size, dtype=torch.float64)
    return torch.cos(steps).round(decimals=1).reshape(x.shape[1], window.size).to(x.dtype)


def _ranked(window: Window, x: Tensor) -> list[Call]:
    weights = torch.cos(torch.arange(float(window.size))).round(decimals=1).tolist()
    return [({**window.onnx(), "weights": weights}, (x,))]


def _power_mean(window: Window, x: Tensor) -> list[Call]:
    cells = x.abs()
    return [({**window.onnx()}, (cells, p)) for p in (x.new_tensor([3.0]), x.new_tensor([1.0, 2.5, 6.0]))]


def _detail(window: Window, x: Tensor) -> list[Call]:
    """Without pads, for which the operator has no meaning."""
    bare = Window.of(window.kernel_shape, window.strides, [0] * 2 * window.rank, window.dilations)
    centre = bare.cells(x.double(), 0.0).mean(-1).to(x.dtype)
    numbers = (x.new_tensor([0.5, 1.0, 0.25]), x.new_tensor([-1.0, 0.0, 1.0]), x.new_tensor([1e-3]))
    return [
        ({**bare.onnx(), "above_only": above, "normalize": normalize}, (x, centre, *numbers))
        for above, normalize in ((False, "mean"), (True, "sum"), (False, "none"))
    ]


def _same(**attributes: Any) -> Callable[[Window, Tensor], list[Call]]:
    def calls(window: Window, x: Tensor) -> list[Call]:
        return [({"kernel_shape": list(window.kernel_shape), "strides": list(window.strides), **attributes}, (x,))]

    return calls


def _same_dilated(window: Window, x: Tensor) -> list[Call]:
    return _same(dilations=list(window.dilations))(window, x)


def _adaptive(window: Window, x: Tensor) -> list[Call]:
    sizes = ([1] * window.rank, [3, 2, 5][: window.rank], [0, 13, 1][: window.rank])
    return [({"output_size": size}, (x,)) for size in sizes]


def _whole_planes(window: Window, x: Tensor) -> list[Call]:
    return [({"axes": [*range(2, x.dim())], "keepdims": keep}, (x,)) for keep in (0, 1)]


def _whole_planes_by_sharpness(window: Window, x: Tensor) -> list[Call]:
    return [(attributes, (x, x.new_tensor([3.0]))) for attributes, _ in _whole_planes(window, x)]


def _fractional(window: Window, x: Tensor) -> list[Call]:
    rank = window.rank
    shared = torch.tensor([[[0.25, 0.75, 0.5][:rank]]], dtype=torch.float64)
    keys = torch.tensor([0.3, 0.9, 0.1, 0.6] * rank, dtype=torch.float64).reshape(1, 4, rank)
    rule = {"output_size": [3] * rank, "output_ratio": ["0.0"] * rank, "precision": "float32", "per_plane": 0}
    torchs = {"kernel_shape": [2] * rank, "regions": "torch", "overlapping": 0}
    grahams = {"kernel_shape": [0] * rank, "regions": "pseudorandom", "overlapping": 1}
    random = {"kernel_shape": [0] * rank, "regions": "random", "overlapping": 0}
    own = shared.expand(*x.shape[:2], rank).contiguous()
    return [
        ({**rule, **torchs}, (x, shared)),
        ({**rule, **torchs, "per_plane": 1}, (x, own)),
        ({**rule, **grahams}, (x, shared)),
        ({**rule, **random}, (x, keys)),
    ]


def _largest_of_sequence(window: Window, x: Tensor) -> list[Call]:
    return [({"k": 3, "by_position": ordered}, (x.flatten(2),)) for ordered in (False, True)]


def _queried(window: Window, x: Tensor) -> list[Call]:
    """On maps; an input of another rank is folded into one."""
    maps = x.flatten(3) if x.dim() > 3 else x.unsqueeze(2)
    grid, offset = torch.tensor([3.0, 4.0]).double(), torch.tensor([0.25, 0.25]).double()
    return [
        ({"relative": 1, "reduce": "max"}, (maps, grid, offset)),
        ({"relative": 0, "reduce": "average"}, (maps, grid, 3 * offset)),
    ]


def _sketched(window: Window, x: Tensor) -> list[Call]:
    """Bins that no pair falls into, and bins that several do; lengths with factors and without."""
    maps, other = x.flatten(2), x[:, :2].flatten(2).flip(2)
    hashes, signs = torch.tensor([3, 0, 4]), x.new_tensor([-1.0, 1.0, 1.0])
    same = (maps, maps, hashes, signs, torch.tensor([1, 1, 2]), x.new_tensor([1.0, -1.0, 1.0]))
    two = (maps, other, hashes, signs, torch.tensor([4, 2]), x.new_tensor([0.5, -1.0]))
    return [
        ({"output_dim": 5, "pooled": 1, "by": "pairs"}, same),
        ({"output_dim": 12, "pooled": 1, "by": "pairs"}, two),
        ({"output_dim": 5, "pooled": 0, "by": "pairs"}, two),
        ({"output_dim": 12, "pooled": 0, "by": "transform"}, same),
        ({"output_dim": 31, "pooled": 0, "by": "transform"}, two),
    ]


SAMPLES: dict[str, Callable[[Window, Tensor], list[Call]]] = {
    "AdaptiveAveragePool": _adaptive,
    "AdaptiveMaxPool": _adaptive,
    "AdaptiveMaxPoolWithIndices": _adaptive,
    "AveragePool": lambda window, x: _windowed(counted_pads=[0] * 2 * window.rank, divisor_override=0)(window, x),
    "CompactBilinear": _sketched,
    "DetailPreservingPool": _detail,
    "FractionalMaxPool": _fractional,
    "FractionalMaxPoolWithIndices": _fractional,
    "GeneralizedMeanPool": _power_mean,
    "GlobalAveragePool": _whole_planes,
    "GlobalLogMeanExpPool": _whole_planes_by_sharpness,
    "GlobalMaxPool": _whole_planes,
    "KMaxPool": _largest_of_sequence,
    "LogMeanExpPool": _all(_windowed(_per_channel(5.0)), _windowed(_per_channel(0.5, 1.0, 10.0))),
    "MaxPool": _windowed(),
    "MaxPoolWithIndices": _windowed(),
    "MeanSimilarityPool": _all(
        _windowed(weighting="dice"), _windowed(weighting="signed_dice"), _windowed(weighting="inverse_distance")
    ),
    "OrdinalPool": _windowed(_per_cell),
    "PowerAveragePool": _windowed(p=3.0, signed=False),
    "QueryPool": _queried,
    "SameAveragePool": _all(_same(count_include_pad=0), _same(count_include_pad=1)),
    "SameMaxPool": _same_dilated,
    "SoftmaxPool": _windowed(_itself),
    "SortedWeightedPool": _ranked,
    "WeightedAveragePool": _windowed(_positive),
    "WeightedSumPool": _windowed(_per_cell),
}
