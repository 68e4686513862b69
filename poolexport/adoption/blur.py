"""Blur pooling: the author's package, timm, kornia.

They differ in what lies beyond the border, and in how much of it. kornia's edge-aware blur is another function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from poolexport import nn as ours
from poolexport.adoption._entry import Entry, Foreign, Ours, Unlike, around, carry
from poolexport_ops import per_axis
from poolexport_ops._blur import binomial_filter

#: What the author's package pads with, by the beginning of the padding module's class.
PADDINGS = {"Reflection": "reflect", "Replication": "replicate", "Zero": "zero", "Constant": "zero"}
MODES = {"reflect": "reflect", "replicate": "replicate", "constant": "zero"}


def zhang(found: Foreign) -> list[Ours]:
    filt = found.get("filt")
    padding = type(found.get("pad")).__name__
    mode = next((mode for prefix, mode in PADDINGS.items() if padding.startswith(prefix)), None)
    if mode is None:
        raise Unlike(f"it pads by {padding}, which ours does not")
    if mode == "zero" and found.get("pad.value", 0.0) != 0:
        raise Unlike("it pads with a number other than 0")
    if found.get("pad_off"):
        raise Unlike(f"its pad_off is {found.get('pad_off')}, and ours has no such offset")
    rank = filt.dim() - 2
    size, stride = (per_axis(name, found.get(name), rank, 1) for name in ("filt_size", "stride"))
    kind = getattr(ours, f"BlurPool{rank}d")
    layer = carry(kind(filt.shape[0], size, stride, mode, "zhang"), {"filt": filt})
    return [Ours(layer, _meaning(mode), around(size, stride, filt.shape[0]))]


def timm(found: Foreign) -> list[Ours]:
    given = found.get("pad_mode", "reflect")
    if given not in MODES:
        raise Unlike(f"its pad_mode is {given!r}, which ours does not have")
    size, stride = (per_axis(name, found.get(name), 2, 1) for name in ("filt_size", "stride"))
    layer = _of_binomial(found.get("filt"), size, stride=stride, pad_mode=MODES[given], pad_rule="timm")
    return [Ours(layer, _meaning(MODES[given]), around(size, stride, found.get("channels") or 3))]


def kornia(found: Foreign) -> list[Ours]:
    size, stride = (per_axis(name, found.get(name), 2, 1) for name in ("kernel_size", "stride"))
    layer = _of_binomial(found.get("kernel"), size, stride=stride, pad_mode="zero", pad_rule="kornia")
    return [Ours(layer, _meaning("zero"), around(size, stride))]


def kornia_max(found: Foreign) -> list[Ours]:
    size, stride = (per_axis(name, found.get(name), 2, 1) for name in ("kernel_size", "stride"))
    window = per_axis("max_pool_size", found.get("max_pool_size"), 2, 1)
    layer = ours.MaxBlurPool2d(window, 0, size, stride, "zero", "kornia")
    _require_binomial(found.get("kernel"), size)
    layer.to(found.get("kernel").device, found.get("kernel").dtype)
    shapes = around([a + b for a, b in zip(size, window)], stride)
    return [Ours(layer, f"the largest cell of every window with stride 1, then {_meaning('zero')}", shapes)]


def edge_aware(found: Foreign) -> list[Ours]:
    raise Unlike("it blurs away from edges only, which no layer of ours does")


def _of_binomial(filt: Tensor, size: tuple[int, ...], **options: Any) -> torch.nn.Module:
    """A layer for any number of channels, whose filter is not in the state dict."""
    _require_binomial(filt, size)
    return ours.BlurPool2d(None, size, **options).to(filt.device, filt.dtype)


def _require_binomial(filt: Tensor, size: tuple[int, ...]) -> None:
    expected = binomial_filter(size).to(filt)
    if filt.shape[-2:] != expected.shape or not torch.allclose(filt, expected.expand_as(filt), rtol=1e-3, atol=1e-6):
        raise Unlike("its filter is not the binomial one of its size")


def _meaning(mode: str) -> str:
    beyond = {"reflect": "the mirror image", "replicate": "the outermost cells", "zero": "zeros"}[mode]
    return f"a binomial filter with stride; {beyond} beyond the border"


ENTRIES = (
    *(Entry(name, zhang, ("BlurPool2d",)) for name in ("BlurPool", "BlurPoolND", "Downsample")),
    *(Entry(name, zhang, ("BlurPool1d",)) for name in ("BlurPool1D", "Downsample1D")),
    Entry("BlurPool3D", zhang, ("BlurPool3d",)),
    Entry("BlurPool2d", timm, ("BlurPool2d",)),
    Entry("BlurPool2D", kornia, ("BlurPool2d",)),
    Entry("MaxBlurPool2D", kornia_max, ("MaxBlurPool2d",)),
    Entry("EdgeAwareBlurPool2D", edge_aware, ()),
)
