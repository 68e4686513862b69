"""Position-sensitive RoI pooling (R-FCN): every bin of a box averages channels of its own.

y[c, i, j] = mean of channel (c P_h + i) P_w + j over the cells of bin (i, j); 0 for a bin without cells

"torchvision"  s, e = round(start scale), round(end scale);  b = max(e - s, 1) / P
               cells floor(i b) + s ... ceil((i + 1) b) + s - 1, of all but the last row and column of the map
"r-fcn"        s, e = round(start) scale, (round(end) + 1) scale;  b = max(e - s, 0.1) / P
               cells floor(i b + s) ... ceil((i + 1) b + s) - 1

Halves are rounded away from zero. Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import require_choice
from poolexport.methods._rois import RoILayer, boxes_to_try, cut, floor_and_ceil, nearest
from poolexport.reference import Floats, PerAxis, exact_sum, per_axis
from poolexport_ops.position_sensitive_roi_pool import position_sensitive_roi_pool


class PSRoIPool2d(RoILayer):
    """Mean of every bin of every box over the bin's own channels; a bin without cells is 0.

    ``forward(x, rois)`` takes boxes as (R, 5), the number of a map and x1, y1, x2, y2 in units of the image, or as a
    list with (L, 4) for every map. Where a bin ends is worked out in the type of the boxes; for maps or boxes of half
    precision in float32. Sums are in float64.

    Args:
        output_size: bins per box, an int or rows and columns.
        spatial_scale: cells of the map per unit of the boxes; 1/16 for a map of every 16th pixel.
        rule: "torchvision" rounds scaled ends, and never reaches the last row and column of the map; "r-fcn" rounds
            ends before it scales them, counts the end as part of the box, and reaches all of the map.

    Shape:
        (N, C P_h P_w, H, W) and (R, 5) to (R, C, P_h, P_w); R may be 0.

    Raises:
        ValueError: an option out of range, an input of another rank, without cells, or with channels that are no
            multiple of the number of bins, or boxes that are not of that shape, not floating numbers, not finite, or on
            a map that the batch does not have.

    Example:
        >>> import torch
        >>> from poolexport.nn import PSRoIPool2d
        >>> x = torch.arange(18.0).reshape(1, 2, 3, 3)
        >>> PSRoIPool2d((1, 2))(x, torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]]))
        tensor([[[[ 1.5000, 11.5000]]]])

    Source:
        Dai, Li, He, Sun, NIPS 2016, eq. 1; packages daijifeng001/caffe-rfcn (PSROIPoolingLayer) and torchvision
        (torchvision.ops.PSRoIPool), which disagree.
    """

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float = 1.0, rule: str = "torchvision"
    ) -> None:
        super().__init__(output_size, spatial_scale)
        require_choice("rule", rule, ("torchvision", "r-fcn"))
        self.rule = rule

    def forward(self, x: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        boxes = self.boxes(x, rois)
        rows, columns = self.size
        if x.shape[1] % (rows * columns):
            raise ValueError(
                f"{rows} by {columns} bins need a multiple of {rows * columns} channels, the input has {x.shape[1]}"
            )
        return position_sensitive_roi_pool(x, boxes, **self.options(), rule=self.rule)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule!r}"


def reference(
    x: ArrayLike,
    rois: ArrayLike,
    output_size: PerAxis,
    spatial_scale: float = 1.0,
    rule: str = "torchvision",
    precision: Any = np.float32,
) -> Floats:
    """Position-sensitive RoI pooling, slowly: box after box, class after class, bin after bin."""
    x, boxes = np.asarray(x, dtype=np.float64), np.asarray(rois).astype(precision)
    rows, columns = per_axis(output_size, 2)
    y = np.zeros((len(boxes), x.shape[1] // (rows * columns), rows, columns))
    cells_of = {"torchvision": _torchvision, "r-fcn": _r_fcn}[rule]
    scale = precision(spatial_scale)
    for r, (number, x1, y1, x2, y2) in enumerate(boxes):
        for c, i, j in np.ndindex(y.shape[1:]):
            down = cells_of(y1, y2, scale, i, rows, x.shape[2], precision)
            across = cells_of(x1, x2, scale, j, columns, x.shape[3], precision)
            cells = [x[int(number), c * rows * columns + i * columns + j, h, w] for h in down for w in across]
            if cells:
                y[r, c, i, j] = exact_sum(np.array(cells), len(cells))
    return y


def _torchvision(low: Any, high: Any, scale: Any, i: int, bins: int, length: int, precision: Any) -> range:
    start, end = nearest(low * scale), nearest(high * scale)
    size = precision(max(end - start, 1)) / precision(bins)
    first, after = floor_and_ceil(precision(i) * size, precision(i + 1) * size)
    return cut(first + start, after + start, length - 1)


def _r_fcn(low: Any, high: Any, scale: Any, i: int, bins: int, length: int, precision: Any) -> range:
    start, end = precision(nearest(low)) * scale, precision(nearest(high) + 1) * scale
    size = max(end - start, precision(0.1)) / precision(bins)
    return cut(*floor_and_ceil(precision(i) * size + start, precision(i + 1) * size + start), length)


def companions(
    x: ArrayLike, output_size: PerAxis, spatial_scale: float = 1.0, rule: str = "torchvision"
) -> tuple[NDArray[np.float32]]:
    """Boxes of every kind for an input."""
    return (boxes_to_try(x, spatial_scale),)


METHOD = Method(
    (PSRoIPool2d,),
    summary="The mean of every bin of every box, over channels that belong to that bin alone.",
    paper=Paper(
        "R-FCN: Object Detection via Region-based Fully Convolutional Networks",
        "Dai, Li, He, Sun",
        2016,
        "arXiv:1605.06409",
    ),
    reference=reference,
    training="mean of every bin",
    inference="mean of every bin",
    operators=(position_sensitive_roi_pool,),
    companions=companions,
    companion_axes=("R_",),
    dynamic_channels=False,
    cases=(
        Case("2x2", {"output_size": 2, "spatial_scale": 0.5}, shape=(2, 4, 6, 7)),
        Case("2x3-classes", {"output_size": (2, 3)}, shape=(1, 12, 5, 6)),
        Case("16th", {"output_size": 3, "spatial_scale": 1 / 16}, shape=(1, 9, 7, 5)),
        Case("one-bin", {"output_size": 1, "spatial_scale": 0.1}, shape=(1, 2, 4, 5)),
        Case("r-fcn", {"output_size": 2, "spatial_scale": 1 / 16, "rule": "r-fcn"}, shape=(2, 8, 6, 7)),
        Case("r-fcn-a-third", {"output_size": (3, 1), "spatial_scale": 1 / 3, "rule": "r-fcn"}, shape=(1, 3, 5, 6)),
        Case("1x1", {"output_size": 2, "spatial_scale": 0.25, "rule": "r-fcn"}, shape=(2, 4, 1, 1)),
    ),
    space={
        "output_size": (1, (3, 1), (1, 3)),
        "spatial_scale": (1.0, 0.5, 0.25, 1 / 16, 1 / 3, 0.1),
        "rule": ("torchvision", "r-fcn"),
    },
    limits=(
        Limit({"output_size": 0}, ValueError, "output_size must be a positive int"),
        Limit({"output_size": (2, 2, 2)}, ValueError, "a tuple of 2"),
        Limit({"output_size": 2, "spatial_scale": 0.0}, ValueError, "spatial_scale must be a finite number above 0"),
        Limit({"output_size": 2, "rule": "caffe"}, ValueError, "rule must be one of"),
        Limit({"output_size": 2}, ValueError, "expects an input of shape", shape=(2, 4, 9)),
        Limit({"output_size": 2}, ValueError, "there is nothing to pool", shape=(1, 4, 0, 4)),
        Limit({"output_size": 2}, ValueError, "need a multiple of 4 channels", shape=(1, 6, 5, 5)),
    ),
    notes=(
        "torchvision never reads the last row and column of a map, nor does rule='torchvision'; its gradients are "
        "those of a form that does, the gradients here are those of this form.",
        "The code of R-FCN runs on GPUs only, which may keep a product and a sum unrounded between them; here both are "
        "rounded.",
        "A file refuses boxes on a map beyond the batch, but takes -1 for the last map; boxes that are not finite give "
        "numbers that mean nothing. The layer refuses all of these.",
    ),
)
