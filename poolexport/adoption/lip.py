"""Local importance pooling: the networks of the authors' two files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poolexport import nn as ours
from poolexport.adoption._entry import Entry, Foreign, Ours, Unlike, carry

MEANING = "the mean of every window, weighted by what {} finds important"
HIDDEN = ("conv1", "bn1", "conv2", "bn2")


def simplified(found: Foreign) -> list[Ours]:
    naming = "resnet" if found.get("logit.conv", None) is not None else "densenet"
    conv, norm = {"resnet": ("conv", "bn"), "densenet": ("conv1", "bn1")}[naming]
    channels = found.get(f"logit.{conv}.in_channels")
    layer = ours.SimplifiedLIP2d(channels, coeff=_coeff(found, "logit"), naming=naming)
    _carry(layer, found, "logit", conv, norm)
    return [Ours(layer, MEANING.format("one convolution"), _shapes(channels))]


def bottleneck(found: Foreign) -> list[Ours]:
    return [_whole(found) if found.get("logit", None) is not None else _last_third(found)]


def _whole(found: Foreign) -> Ours:
    channels, width = found.get("logit.conv1.in_channels"), found.get("logit.conv1.out_channels")
    layer = ours.BottleneckLIP2d(channels, width, coeff=_coeff(found, "logit"))
    _carry(layer, found, "logit", *HIDDEN, "conv3", "bn3")
    return Ours(layer, MEANING.format("a bottleneck"), _shapes(channels))


def _last_third(found: Foreign) -> Ours:
    width, channels = found.get("postprocessing.conv.in_channels"), found.get("postprocessing.conv.out_channels")
    coeff = _coeff(found, "postprocessing")
    layer = ours.SharedBottleneckLIP2d(channels, width, own_shared=False, coeff=coeff)
    _carry(layer, found, "postprocessing", "conv", "bn")

    def shared(x: Tensor) -> tuple[Tensor]:
        generator = torch.Generator().manual_seed(1)
        shape = (x.shape[0], width, *x.shape[2:])
        return (torch.randn(shape, generator=generator, dtype=torch.float64).to(x.dtype),)

    meaning = MEANING.format("a bottleneck shared with other layers")
    return Ours(layer, meaning, _shapes(channels), companions=shared, call="forward_with_shared")


def shared(found: Foreign) -> list[Ours]:
    channels, width = found.get("logit.conv1.in_channels"), found.get("logit.conv1.out_channels")
    layer = ours.BottleneckShared2d(channels, width)
    _carry(layer, found, "logit", *HIDDEN)
    return [Ours(layer, "the shared part of bottlenecks, which does not pool", _shapes(channels))]


def _coeff(found: Foreign, network: str) -> float:
    """The upper end of the gate, which is a constant of the file that the class is in."""
    gate: nn.Module = found.get(f"{network}.gate")
    # Not called, so that no hook of it is.
    top = gate.forward(torch.full((1, 1, 1, 1), 64.0, dtype=torch.float64))
    coeff = float(top.flatten()[0])
    if not coeff > 0:
        raise Unlike(f"its gate ends at {coeff}, and that of ours above 0")
    return coeff


def _carry(layer: nn.Module, found: Foreign, network: str, *parts: str) -> None:
    tensors = {}
    for part in parts:
        name = f"{network}.{part}"
        tensors[f"{name}.weight"] = found.get(f"{name}.weight")
        if part.startswith("bn"):
            tensors[f"{name}.bias"] = found.get(f"{name}.bias")
        elif found.get(f"{name}.bias", None) is not None:
            raise Unlike(f"{name} has a bias, and ours has none")
    if any(tensor is None for tensor in tensors.values()):
        raise Unlike("its norms have no scale and shift, and ours have")
    carry(layer, tensors)


def _shapes(channels: int) -> tuple[tuple[int, ...], ...]:
    return (2, channels, 7, 9), (1, channels, 8, 6)


ENTRIES = (
    Entry("SimplifiedLIP", simplified, ("SimplifiedLIP2d",)),
    Entry("BottleneckLIP", bottleneck, ("BottleneckLIP2d", "SharedBottleneckLIP2d")),
    Entry("BottleneckShared", shared, ("BottleneckShared2d",)),
)
