"""timm's pooling of windows: medians, and "same" padding."""

from __future__ import annotations

from poolexport import nn as ours
from poolexport.adoption._entry import Entry, Foreign, Ours, Unlike, around
from poolexport_ops import per_axis


def median(found: Foreign) -> list[Ours]:
    if found.get("same"):
        raise Unlike("same=True pads by an amount that depends on the input, which ours cannot")
    left, right, top, bottom = found.get("padding")
    if (left, top) != (right, bottom):
        raise Unlike(f"it pads {left}, {right}, {top} and {bottom} cells on its sides; ours pads both ends alike")
    kernel, stride = found.get("k"), found.get("stride")
    layer = ours.MedianPool2d(kernel, stride, (top, left), pad_mode="reflect", even="lower")
    meaning = "the median of every window, the smaller of two in the middle; padding is the mirror image"
    return [Ours(layer, meaning, around([k + p for k, p in zip(kernel, (top, left))], stride))]


def same_average(found: Foreign) -> list[Ours]:
    kernel, stride = _window(found)
    layer = ours.SameAvgPool2d(kernel, stride, count_include_pad=True)
    notes = ("padded cells count, whatever its own count_include_pad says",)
    return [Ours(layer, 'the mean of every window with "same" padding, padded cells counted', _sizes(found), notes)]


def same_max(found: Foreign) -> list[Ours]:
    kernel, stride = _window(found)
    if any(d != 1 for d in per_axis("dilation", found.get("dilation"), 2, 1)):
        raise Unlike('it leaves the dilation out when it works out the pads, so its windows are not those of "same"')
    layer = ours.SameMaxPool2d(kernel, stride)
    return [Ours(layer, 'the largest cell of every window with "same" padding', _sizes(found))]


def _window(found: Foreign) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kernel = per_axis("kernel_size", found.get("kernel_size"), 2, 1)
    stride = found.get("stride")
    return kernel, kernel if stride is None else per_axis("stride", stride, 2, 1)


def _sizes(found: Foreign) -> tuple[tuple[int, ...], ...]:
    """Maps whose length leaves one remainder after another."""
    kernel, stride = _window(found)
    shapes = around(kernel, stride)
    return (*shapes, *((1, 2, *(n + 1 + extra for n in shapes[1][2:])) for extra in range(min(stride))))


ENTRIES = (
    Entry("MedianPool2d", median, ("MedianPool2d",)),
    Entry("AvgPool2dSame", same_average, ("SameAvgPool2d",)),
    Entry("MaxPool2dSame", same_max, ("SameMaxPool2d",)),
)
