"""Pooling of whole planes: timm's heads, fastai's AdaptiveConcatPool2d, and the generalized mean.

timm's SelectAdaptivePool2d stays in its place, because networks ask it ``is_identity()`` and ``feat_mult()``; what it
holds and calls is replaced.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from poolexport import nn as ours
from poolexport.adoption._entry import Entry, Foreign, Ours, Unlike, carry, planes

MEANINGS = {
    "mean": "half the mean and half the largest cell of every plane",
    "concat_avg_max": "the means of all planes, then their largest cells",
    "concat_max_avg": "the largest cells of all planes, then their means",
}


def fast_average(found: Foreign) -> list[Ours]:
    layer = ours.GlobalAvgPool2d(keepdim=not _flat(found))
    return [Ours(layer, "the mean of every plane", planes(2))]


def fast_max(found: Foreign) -> list[Ours]:
    layer = ours.GlobalMaxPool2d(keepdim=not _flat(found))
    return [Ours(layer, "the largest cell of every plane", planes(2))]


def fast(combine: str) -> Callable[[Foreign], list[Ours]]:
    """Of timm's heads that reduce whole planes."""

    def convert(found: Foreign) -> list[Ours]:
        return [Ours(ours.AvgMaxPool2d(combine, keepdim=not _flat(found)), MEANINGS[combine], planes(2))]

    return convert


def adaptive(combine: str) -> Callable[[Foreign], list[Ours]]:
    """Of timm's heads with an output size."""

    def convert(found: Foreign) -> list[Ours]:
        _require_single_bin(found.get("output_size"))
        return [Ours(ours.AvgMaxPool2d(combine), MEANINGS[combine], planes(2))]

    return convert


def concat(found: Foreign) -> list[Ours]:
    rank = int(type(found.module).__name__[-2])
    kind = getattr(ours, f"AvgMaxPool{rank}d")
    for child in found.module.children():
        if hasattr(child, "output_size"):
            _require_single_bin(child.output_size)
    # Copies of fastai's class put the averages first; which one it is shows in what it answers.
    return [
        Ours(kind(combine, keepdim=keepdim), MEANINGS[combine], planes(rank), name=f"{combine}{suffix}")
        for keepdim, suffix in ((True, ""), (False, "_flat"))
        for combine in ("concat_max_avg", "concat_avg_max")
    ]


def generalized_mean(found: Foreign) -> list[Ours]:
    _require_single_bin(found.get("output_size", 1))
    power, eps = found.get("p"), float(found.get("eps"))
    learned = isinstance(power, nn.Parameter)
    channels = power.numel() if learned and power.numel() > 1 else None
    if isinstance(power, Tensor) and not learned and power.numel() > 1:
        raise Unlike("its orders are fixed and differ between channels; ours are one, or learned")
    made = []
    for keepdim, name in ((True, "keepdim"), (False, "flat")):
        options = {"eps": eps, "keepdim": keepdim, "learned": learned, "channels": channels}
        first = float(power.detach().flatten()[0]) if isinstance(power, Tensor) else float(power)
        layer = ours.GeMPool2d(first, **options)
        made.append(
            Ours(
                carry(layer, {"p": power}) if learned else layer,
                f"the generalized mean of every plane, of cells of at least {eps:g}",
                planes(2, channels or 3),
                name=name,
            )
        )
    return made


def log_mean_exp(found: Foreign) -> list[Ours]:
    sharpness = found.get("r")
    learned = isinstance(sharpness, nn.Parameter)
    layer = ours.LSEPool2d(float(torch.as_tensor(sharpness).detach()), learned=learned, keepdim=not _flat(found))
    meaning = "the logarithm of the mean exponential of every plane"
    return [Ours(carry(layer, {"r": sharpness}) if learned else layer, meaning, planes(2))]


def _flat(found: Foreign) -> bool:
    """Whether the answer has no spatial axes; layers for channels at the end are others."""
    axes = found.get("dim", found.get("dim_reduce", (2, 3)))
    if tuple(axes) != (2, 3):
        raise Unlike(f"it reduces the axes {tuple(axes)}, and ours pool axes 2 and 3")
    flatten = found.get("flatten")
    if not isinstance(flatten, bool):
        raise Unlike(f"its flatten is {flatten!r} and no bool")
    return flatten


def _require_single_bin(size: object) -> None:
    sizes = size if isinstance(size, (tuple, list)) else (size,)
    if any(n != 1 for n in sizes):
        raise Unlike(f"its output size is {size}, and ours pools whole planes; the layers in it are taken one by one")


_CLASSES = ("AvgMaxPool2d",)
#: What the generalized mean is called.
GEMS = ("GeM", "GeMmp", "GeMPool", "GeMPooling", "GeneralizedMeanPooling", "GeneralizedMeanPoolingP")

ENTRIES = (
    Entry("FastAdaptiveAvgPool", fast_average, ("GlobalAvgPool2d",)),
    Entry("FastAdaptiveAvgPool2d", fast_average, ("GlobalAvgPool2d",)),
    Entry("FastAdaptiveMaxPool", fast_max, ("GlobalMaxPool2d",)),
    Entry("FastAdaptiveAvgMaxPool", fast("mean"), _CLASSES),
    Entry("FastAdaptiveCatAvgMaxPool", fast("concat_avg_max"), _CLASSES),
    Entry("AdaptiveAvgMaxPool2d", adaptive("mean"), _CLASSES),
    Entry("AdaptiveCatAvgMaxPool2d", adaptive("concat_avg_max"), _CLASSES),
    Entry("AdaptiveConcatPool1d", concat, ("AvgMaxPool1d",)),
    Entry("AdaptiveConcatPool2d", concat, _CLASSES),
    *(Entry(name, generalized_mean, ("GeMPool2d",)) for name in GEMS),
    Entry("LsePlus2d", log_mean_exp, ("LSEPool2d",)),
)
