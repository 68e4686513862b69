"""torchvision's pooling of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from poolexport import nn as ours
from poolexport.adoption._entry import Entry, Foreign, Ours, Unlike

ROOT = "torchvision"
MAP = (12, 14)
BOXES = 5


def roi_max(found: Foreign) -> list[Ours]:
    layer = ours.RoIMaxPool2d(found.get("output_size"), found.get("spatial_scale"))
    return [_on_boxes(layer, "the largest cell of every bin of every box", found)]


def roi_align(found: Foreign) -> list[Ours]:
    options = {name: found.get(name) for name in ("spatial_scale", "sampling_ratio", "aligned")}
    layer = ours.RoIAlign2d(found.get("output_size"), **options)
    meaning = "the mean of samples of every bin of every box, between four cells each"
    # torchvision has a second form, for machines without its compiled one, which differs beyond the border.
    return [_on_boxes(layer, meaning, found, beyond=0.0, notes=("compared on boxes inside of the map",))]


def ps_roi(found: Foreign) -> list[Ours]:
    size = found.get("output_size")
    rows, columns = (size, size) if isinstance(size, int) else size
    layer = ours.PSRoIPool2d(size, found.get("spatial_scale"))
    meaning = "the mean of every bin of every box, over the bin's own channels"
    return [_on_boxes(layer, meaning, found, 2 * rows * columns)]


def ps_roi_align(found: Foreign) -> list[Ours]:
    raise Unlike("it samples between cells for every bin's own channels, which no layer of ours does")


def of_levels(found: Foreign) -> list[Ours]:
    raise Unlike("it picks a map of its own for every box, which no layer of ours does")


def _on_boxes(
    layer: torch.nn.Module,
    meaning: str,
    found: Foreign,
    channels: int = 3,
    beyond: float = 0.2,
    notes: tuple[str, ...] = (),
) -> Ours:
    scale = float(found.get("spatial_scale"))

    def boxes(x: Tensor) -> tuple[Tensor]:
        """Boxes on every map, which may reach beyond its border, and one the wrong way round."""
        generator = torch.Generator().manual_seed(2)
        drawn = torch.rand((BOXES * x.shape[0], 2, 2), generator=generator, dtype=torch.float64)
        corners = (
            ((1 + 2 * beyond) * drawn - beyond)
            * torch.tensor([x.shape[3] - 1, x.shape[2] - 1], dtype=torch.float64)
            / scale
        )
        ordered = corners.sort(1).values
        ordered[0] = ordered[0].flip(0)
        maps = torch.arange(BOXES * x.shape[0], dtype=torch.float64) % x.shape[0]
        return (torch.cat([maps[:, None], ordered.flatten(1)], 1).to(x.dtype),)

    shapes = ((2, channels, *MAP), (1, channels, *(n + 1 for n in MAP)))
    return Ours(layer, meaning, shapes, notes, companions=boxes)


ENTRIES = (
    Entry("RoIPool", roi_max, ("RoIMaxPool2d",), ROOT),
    Entry("RoIAlign", roi_align, ("RoIAlign2d",), ROOT),
    Entry("PSRoIPool", ps_roi, ("PSRoIPool2d",), ROOT),
    Entry("PSRoIAlign", ps_roi_align, (), ROOT),
    Entry("MultiScaleRoIAlign", of_levels, (), ROOT),
)
