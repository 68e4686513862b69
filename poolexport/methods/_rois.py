"""What layers on boxes share: their options, what boxes must be, and boxes to try them on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poolexport.methods._layers import Layer, require_positive, widened
from poolexport_ops import require_rank
from poolexport_ops._regions import bins_per_axis, require_cells

#: In cells; whole numbers of this size are exact in all the arithmetic of boxes.
FARTHEST = 2**30


class RoILayer(Layer):
    """A layer on maps and boxes, which cuts every box into the same number of bins."""

    rank: ClassVar[int] = 2

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.size = bins_per_axis(output_size, self.rank)
        if 0 in self.size:
            raise ValueError(f"output_size must be a positive int or a tuple of 2, got {output_size!r}")
        require_positive("spatial_scale", spatial_scale)
        self.output_size = output_size
        self.spatial_scale = float(spatial_scale)

    def options(self) -> dict[str, Any]:
        """The attributes that operators on boxes share."""
        return {"output_size": list(self.size), "spatial_scale": repr(self.spatial_scale)}

    def boxes(self, x: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """The boxes as (R, 5), in float32 or float64.

        Raises:
            ValueError: maps of another rank or without cells, or boxes that are none of these maps'.
        """
        require_rank(x, self.rank, type(self).__name__)
        require_cells(x, type(self).__name__)
        rois = rois if isinstance(rois, Tensor) else _numbered(rois, x)
        if rois.dim() != 2 or rois.shape[1] != 5 or not rois.is_floating_point():
            raise ValueError(
                "rois must be (R, 5) floating numbers, the number of a map and x1, y1, x2, y2, or a list of (L, 4) for "
                f"every map, got {rois.dtype} of shape {tuple(rois.shape)}"
            )
        if not torch.compiler.is_compiling():
            self._require_inside(x, rois)
        return widened(rois)

    def _require_inside(self, x: Tensor, rois: Tensor) -> None:
        ends = rois[:, 1:].double() * max(1.0, self.spatial_scale)
        near = (ends.abs() < FARTHEST).all(1)
        if not near.all():
            number = int((~near).nonzero()[0])
            raise ValueError(f"box {number} is not finite, or too far away: {rois[number, 1:].tolist()}")
        maps = rois[:, 0].trunc()
        valid = (maps >= 0) & (maps < x.shape[0])
        if not valid.all():
            number = int((~valid).nonzero()[0])
            raise ValueError(f"box {number} is on map {float(rois[number, 0]):g}, but there are {x.shape[0]} maps")

    def extra_repr(self) -> str:
        return f"output_size={self.output_size!r}, spatial_scale={self.spatial_scale}"


def _numbered(boxes: Sequence[Tensor], x: Tensor) -> Tensor:
    """The boxes of every map, one list after the other, behind the number of their map."""
    if len(boxes) != x.shape[0] or any(each.dim() != 2 or each.shape[1] != 4 for each in boxes):
        raise ValueError(
            f"a list of boxes must hold (L, 4) for each of the {x.shape[0]} maps, got shapes "
            f"{[tuple(each.shape) for each in boxes]}"
        )
    rows = [torch.cat([each.new_full((len(each), 1), number), each], 1) for number, each in enumerate(boxes)]
    return torch.cat(rows) if rows else x.new_zeros(0, 5)


def boxes_to_try(x: ArrayLike, spatial_scale: float) -> NDArray[np.float32]:
    """Boxes for maps: whole, with halves, outside in part and wholly, reversed, and points; none for an empty batch.

    Their number depends on the batch alone; a map of its own length is met by each kind in turn.
    """
    batch, *_, height, width = np.shape(x)
    rng = np.random.default_rng(0)
    kinds = [
        (0, 0, width - 1, height - 1),
        (0.5, 1.5, width / 2 + 0.5, height - 2.5),
        (-3, -2, width + 4, height / 2),
        (width + 5, 1, width + 9, 4),
        (width - 1, height - 1, 1, 0.5),
        (2, 1, 2, 1),
        (-0.25, height - 1.25, 1.75, height + 3),
        *(rng.uniform(-1, 1 + max(height, width), 4) for _ in range(batch)),
    ]
    boxes = np.array(kinds, np.float64) / spatial_scale
    maps = np.arange(len(kinds)) % max(1, batch)
    return np.concatenate([maps[:, None], boxes], axis=1).astype(np.float32)[: len(kinds) if batch else 0]


def nearest(value: float) -> int:
    """The nearest whole number, halves away from zero, in the decimal arithmetic of the standard library.

    Example:
        >>> nearest(2.5), nearest(-0.5), nearest(0.49999997)
        (3, -1, 0)
    """
    return int(Decimal(float(value)).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def cut(first: int, after: int, limit: int) -> range:
    """The cells from ``first`` up to ``after`` that lie between 0 and ``limit``."""
    return range(max(0, min(first, limit)), max(0, min(after, limit)))


def floor_and_ceil(low: Any, high: Any) -> tuple[int, int]:
    """Both as whole numbers: the largest not above ``low``, the smallest not below ``high``."""
    return math.floor(low), math.ceil(high)
