"""torchvision's layers on boxes: ours where we have them, and left alone where we have not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import poolexport
from poolexport.adoption.rois import ENTRIES
from poolexport.adoption.table import entry_for


class OnBoxes(nn.Module):
    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        size = self.output_size
        rows, columns = (size, size) if isinstance(size, int) else size
        answers = [
            [[self.bin(x, box, i, j, rows, columns) for j in range(columns)] for i in range(rows)] for box in rois
        ]
        return torch.stack([torch.stack([torch.stack(row, 1) for row in box], 1) for box in answers])

    def bin(self, x: Tensor, box: Tensor, i: int, j: int, rows: int, columns: int) -> Tensor:
        """(C,): one bin's answer."""
        raise NotImplementedError

    def cells(self, start: float, step: float, place: int, length: int) -> slice:
        first, end = start + place * step, start + (place + 1) * step
        return slice(*(min(max(n, 0), length) for n in (math.floor(first), math.ceil(end))))


def rounded(number: float) -> int:
    return math.floor(number + 0.5) if number >= 0 else math.ceil(number - 0.5)


class RoIPool(OnBoxes):
    def bin(self, x: Tensor, box: Tensor, i: int, j: int, rows: int, columns: int) -> Tensor:
        x1, y1, x2, y2 = (rounded(float(n) * self.spatial_scale) for n in box[1:])
        down = self.cells(y1 * 1.0, max(y2 - y1 + 1, 1) / rows, i, x.shape[2])
        across = self.cells(x1 * 1.0, max(x2 - x1 + 1, 1) / columns, j, x.shape[3])
        found = x[int(box[0]), :, down, across].flatten(1)
        return found.amax(1) if found.shape[1] else x.new_zeros(x.shape[1])


class PSRoIPool(OnBoxes):
    """torchvision's never reaches the last row and column of the map."""

    def bin(self, x: Tensor, box: Tensor, i: int, j: int, rows: int, columns: int) -> Tensor:
        x1, y1, x2, y2 = (rounded(float(n) * self.spatial_scale) for n in box[1:])
        down = self.cells(y1 * 1.0, max(y2 - y1, 1) / rows, i, x.shape[2] - 1)
        across = self.cells(x1 * 1.0, max(x2 - x1, 1) / columns, j, x.shape[3] - 1)
        own = x[int(box[0]), i * columns + j :: rows * columns, down, across].flatten(1)
        return own.mean(1) if own.shape[1] else x.new_zeros(own.shape[0])


class RoIAlign(OnBoxes):
    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = False
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def bin(self, x: Tensor, box: Tensor, i: int, j: int, rows: int, columns: int) -> Tensor:
        x1, y1, x2, y2 = (float(n) * self.spatial_scale - self.aligned / 2 for n in box[1:])
        high, wide = ((y2 - y1), (x2 - x1)) if self.aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        down, across = high / rows, wide / columns
        ratio = self.sampling_ratio
        counts = (ratio, ratio) if ratio > 0 else (math.ceil(down), math.ceil(across))
        total = x.new_zeros(x.shape[1])
        for a in range(counts[0]):
            for b in range(counts[1]):
                y = y1 + i * down + (a + 0.5) * down / counts[0]
                z = x1 + j * across + (b + 0.5) * across / counts[1]
                total = total + between(x[int(box[0])], y, z)
        return total / max(counts[0] * counts[1], 1)


def between(plane: Tensor, y: float, x: float) -> Tensor:
    """The bilinear sample of a map at a place; nothing more than a cell outside."""
    rows, columns = plane.shape[1:]
    if not (-1 <= y <= rows and -1 <= x <= columns):
        return plane.new_zeros(plane.shape[0])
    y, x = min(max(y, 0.0), rows - 1.0), min(max(x, 0.0), columns - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    upper = plane[:, top, left] * (1 - (x - left)) + plane[:, top, right] * (x - left)
    lower = plane[:, bottom, left] * (1 - (x - left)) + plane[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


for kind in (RoIPool, PSRoIPool, RoIAlign):
    kind.__module__ = "torchvision.ops"

MODULES = {
    "RoIPool": (lambda: RoIPool((3, 2), 0.5), "RoIMaxPool2d"),
    "PSRoIPool": (lambda: PSRoIPool(2, 0.25), "PSRoIPool2d"),
    "RoIAlign": (lambda: RoIAlign(2, 0.5, 2), "RoIAlign2d"),
    "RoIAlign-aligned": (lambda: RoIAlign((2, 3), 0.5, 2, True), "RoIAlign2d"),
    "RoIAlign-adaptive": (lambda: RoIAlign(2, 1.0, -1), "RoIAlign2d"),
}


@pytest.mark.parametrize("name", MODULES)
def test_layers_on_boxes_become_ours_where_we_have_them(name):
    make, ours = MODULES[name]
    module = make().eval()
    if ours not in dir(poolexport.nn):
        assert entry_for(module) is None
        assert poolexport.adopt(module).replacements == []
        return
    found = poolexport.adopt(module)
    assert type(found.model) is getattr(poolexport.nn, ours)
    assert found.replacements[0].proven, found.replacements[0].proof


def test_the_entries_name_layers_on_boxes():
    assert {entry.name for entry in ENTRIES if entry.ours} == {"RoIPool", "RoIAlign", "PSRoIPool"}
