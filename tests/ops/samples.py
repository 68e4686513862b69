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
    """Without pads, for which the operator has no meaning; with a centre and without, with exponents of all sizes."""
    bare = Window.of(window.kernel_shape, window.strides, [0] * 2 * window.rank, window.dilations)
    centre = bare.cells(x.double(), 0.0)[..., 0] / 2
    options = ((False, "mean"), (True, "sum"), (False, "none"), (True, "mean"))
    exponents = ([0.5, 1.0, 0.25], [3.0], [0.7], [30.0, 0.0, 7.5])
    calls = []
    for (above, normalize), exponent, centres in zip(options, exponents, ((), (centre,), (centre,), ())):
        numbers = (torch.tensor(values).double() for values in (exponent, [-1.0, 0.0, 1.0], [1e-3]))
        calls.append(({**bare.onnx(), "above_only": above, "normalize": normalize}, (x, *numbers, *centres)))
    return calls


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
    rule = {"output_size": [3] * rank, "output_ratio": ",".join(["0.0"] * rank), "precision": "float32", "per_plane": 0}
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


def _as_maps(x: Tensor) -> Tensor:
    """The input, folded into maps where it has another rank."""
    return x.flatten(3) if x.dim() > 3 else x.unsqueeze(2)


def _subspaces(window: Window, x: Tensor) -> list[Call]:
    maps = x.flatten(2)
    return [({"k": k, "layout": layout}, (maps,)) for k, layout in ((1, "matrix"), (3, "rows"), (1, "columns"))]


def _bases(window: Window, x: Tensor) -> list[Call]:
    return [({"k": 1}, (x.flatten(2),))]


def _moment_powers(window: Window, x: Tensor) -> list[Call]:
    maps = x.flatten(2)
    rules = (
        ("0.5", "0.0", "float32", "columns"),
        ("1.0", "0.1", "float64", "matrix"),
        ("0.3", "1e-12", "float32", "rows"),
    )
    names = ("alpha", "epsilon", "precision", "layout")
    return [(dict(zip(names, rule)), (maps,)) for rule in rules]


def _queried(window: Window, x: Tensor) -> list[Call]:
    maps = _as_maps(x)
    grid, offset = torch.tensor([3.0, 4.0]).double(), torch.tensor([0.25, 0.25]).double()
    return [
        ({"relative": 1, "reduce": "max"}, (maps, grid, offset)),
        ({"relative": 0, "reduce": "average"}, (maps, grid, 3 * offset)),
    ]


def _boxed(*options: dict[str, Any]) -> Callable[[Window, Tensor], list[Call]]:
    """On two boxes whose bins are the same in every precision: one with halves, one reversed and outside in part."""

    def calls(window: Window, x: Tensor) -> list[Call]:
        rois = torch.tensor([[1.0, 1.0, -2.0, 15.0, 9.0], [0.0, 14.0, 5.0, 2.0, 60.0]])
        return [({"spatial_scale": "0.5", **each}, (_as_maps(x), rois)) for each in options]

    return calls


def _pyramid_level(window: Window, x: Tensor) -> list[Call]:
    maps = _as_maps(x)
    few = min(maps.shape[2], 3)
    return [
        ({"bins": few, "rule": "window_stride", "reduce": "max"}, (maps,)),
        ({"bins": few, "rule": "window_stride", "reduce": "average"}, (maps,)),
        ({"bins": min(few, 2), "rule": "caffe", "reduce": "max"}, (maps,)),
        ({"bins": min(few, 2), "rule": "caffe", "reduce": "average"}, (maps,)),
        ({"bins": 5, "rule": "sppnet", "reduce": "max"}, (maps,)),
    ]


def _moments(window: Window, x: Tensor) -> Tensor:
    """Second moments of the channels of ``x``: symmetric matrices without a negative eigenvalue."""
    channels = x.flatten(2)
    return channels @ channels.transpose(1, 2)


def _second_moments(window: Window, x: Tensor) -> list[Call]:
    wanted = ((1, "count"), (1, "count_minus_one"), (0, "one"))
    return [({"centered": centered, "divisor": divisor}, (x.flatten(2),)) for centered, divisor in wanted]


def _triangles(window: Window, x: Tensor) -> list[Call]:
    wanted = (("row", 0), ("column", 0), ("diagonal_first", 1), ("row", 1))
    return [({"order": order, "isometric": isometric}, (_moments(window, x),)) for order, isometric in wanted]


def _roots(window: Window, x: Tensor) -> list[Call]:
    wanted = ((1, "trace"), (5, "trace"), (2, "frobenius"))
    return [({"iterations": count, "norm": norm}, (_moments(window, x),)) for count, norm in wanted]


def _logarithm(window: Window, x: Tensor) -> list[Call]:
    """With a trace of 1: the logarithm magnifies rounding as often as the trace holds ``epsilon``."""
    moments = _moments(window, x)
    trace = moments.diagonal(dim1=1, dim2=2).sum(1).reshape(-1, 1, 1)
    shares = moments / trace.where(trace != 0, 1.0)
    return [({}, (shares, x.new_tensor([epsilon]))) for epsilon in (0.02, 5.0)]


def _flattened(window: Window, x: Tensor) -> list[Call]:
    maps = x.flatten(2)
    return [({}, (maps, other)) for other in (maps, maps.flip(1), maps.flip(2)[:, :2])]


def _two_sizes(window: Window, x: Tensor) -> list[Call]:
    """On maps; an input of another rank is folded into one."""
    maps = x.flatten(3) if x.dim() > 3 else x.unsqueeze(2)
    small, narrow = maps[:, :2, : maps.shape[2] // 2 + 1, ::3], maps[:, :, -1:, :1]
    return [({}, (maps, small)), ({}, (small, maps)), ({}, (maps, narrow)), ({}, (maps, maps))]


def _sketched(window: Window, x: Tensor) -> list[Call]:
    """Bins that no pair falls into, and bins that several do; lengths with factors and without, and one location."""
    maps, other = x.flatten(2), x[:, :2].flatten(2).flip(2)
    hashes, signs = torch.tensor([3, 0, 4]), x.new_tensor([-1.0, 1.0, 1.0])
    same = (maps, maps, hashes, signs, torch.tensor([1, 1, 2]), x.new_tensor([1.0, -1.0, 1.0]))
    two = (maps, other, hashes, signs, torch.tensor([4, 2]), x.new_tensor([0.5, -1.0]))
    far = (maps, maps, torch.tensor([700, 0, 1000]), signs, torch.tensor([-1, 600, 20]), x.new_tensor([1.0, -1.0, 1.0]))
    one = (maps[:, :, :1], maps[:, :, :1], 9 * far[2], signs, 8 * far[4], far[5])
    return [
        ({"output_dim": 5, "pooled": 1, "by": "pairs"}, same),
        ({"output_dim": 12, "pooled": 1, "by": "pairs"}, two),
        ({"output_dim": 5, "pooled": 0, "by": "pairs"}, two),
        ({"output_dim": 12, "pooled": 0, "by": "transform"}, same),
        ({"output_dim": 31, "pooled": 0, "by": "transform"}, two),
        ({"output_dim": 1201, "pooled": 0, "by": "pairs"}, far),
        ({"output_dim": 9001, "pooled": 0, "by": "pairs"}, one),
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
    "Gram": _flattened,
    "KMaxPool": _largest_of_sequence,
    "LogMeanExpPool": _all(_windowed(_per_channel(5.0)), _windowed(_per_channel(0.5, 1.0, 10.0))),
    "MatrixLog": _logarithm,
    "MatrixSqrt": _roots,
    "MaxPool": _windowed(),
    "MaxPoolWithIndices": _windowed(),
    "MeanSimilarityPool": _all(
        _windowed(weighting="dice"), _windowed(weighting="signed_dice"), _windowed(weighting="inverse_distance")
    ),
    "OrdinalPool": _windowed(_per_cell),
    "PositionSensitiveRoiPool": _boxed(
        {"output_size": [3, 1], "rule": "torchvision"}, {"output_size": [1, 3], "rule": "r-fcn"}
    ),
    "PowerAveragePool": _all(_windowed(p="3.0", signed=False), _windowed(p=repr(1 / 3), signed=False)),
    "PyramidLevelPool": _pyramid_level,
    "QueryPool": _queried,
    "RoiAlignPool": _boxed(
        {"output_size": [2, 3], "sampling_ratio": 0, "aligned": 0},
        {"output_size": [4, 1], "sampling_ratio": 2, "aligned": 1},
        {"output_size": [1, 2], "sampling_ratio": 0, "aligned": 1},
    ),
    "RoiMaxPool": _boxed({"output_size": [2, 4]}, {"output_size": [7, 1]}),
    "SameAveragePool": _all(_same(count_include_pad=0), _same(count_include_pad=1)),
    "SameMaxPool": _same_dilated,
    "SecondMoment": _second_moments,
    "SecondMomentPower": _moment_powers,
    "SoftmaxPool": _windowed(_itself),
    "SortedWeightedPool": _ranked,
    "SubspaceBasis": _bases,
    "SubspaceProjection": _subspaces,
    "UpperTriangle": _triangles,
    "SubsampledGram": _two_sizes,
    "WeightedAveragePool": _windowed(_positive),
    "WeightedSumPool": _windowed(_per_cell),
}
