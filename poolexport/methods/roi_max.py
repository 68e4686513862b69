"""RoI pooling (Fast R-CNN): the largest cell of every bin of every box, on a map that the boxes share.

s, e = round(start scale), round(end scale)         of a box along an axis, halves away from zero
b = max(e - s + 1, 1) / P                           cells per bin
y_i = largest of the cells floor(i b) + s ... ceil((i + 1) b) + s - 1       of those that lie on the map; 0 for none

Products and quotients are those of the boxes' type, float32 as a rule: where (i + 1) b lies a little above a whole
number, a bin reaches a cell farther than its box. Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._rois import RoILayer, boxes_to_try, cut, floor_and_ceil, nearest
from poolexport.reference import Floats, PerAxis, per_axis
from poolexport_ops.roi_max_pool import roi_max_pool


class RoIMaxPool2d(RoILayer):
    """Largest cell of every bin of every box; NaN wins over every number, and a bin without cells is 0.

    ``forward(x, rois)`` takes boxes as (R, 5), the number of a map and x1, y1, x2, y2 in units of the image, or as a
    list with (L, 4) for every map. Both ends belong to a box, and one that is reversed is a single cell. Where a bin
    ends is worked out in the type of the boxes; for maps or boxes of half precision in float32.

    Args:
        output_size: bins per box, an int or rows and columns.
        spatial_scale: cells of the map per unit of the boxes; 1/16 for a map of every 16th pixel.

    Shape:
        (N, C, H, W) and (R, 5) to (R, C, *output_size); R may be 0.

    Raises:
        ValueError: an option out of range, an input of another rank or without cells, or boxes that are not of that
            shape, not floating numbers, not finite, or on a map that the batch does not have.

    Example:
        >>> import torch
        >>> from poolexport.nn import RoIMaxPool2d
        >>> x = torch.arange(12.0).reshape(1, 1, 3, 4)
        >>> RoIMaxPool2d(2)(x, torch.tensor([[0.0, 1.0, 0.0, 3.0, 1.0]]))
        tensor([[[[2., 3.],
                  [6., 7.]]]])

    Source:
        Girshick, ICCV 2015, section 2.1; packages rbgirshick/caffe-fast-rcnn (ROIPoolingLayer) and torchvision
        (torchvision.ops.RoIPool), which agree in every bin.
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> None:
        super().__init__(output_size, spatial_scale)

    def forward(self, x: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_max_pool(x, self.boxes(x, rois), **self.options())


def reference(
    x: ArrayLike, rois: ArrayLike, output_size: PerAxis, spatial_scale: float = 1.0, precision: Any = np.float32
) -> Floats:
    """RoI pooling, slowly: box after box and bin after bin; boxes are in the given precision, cells in float64.

    The cells of a bin compete one by one; a larger one wins, and so does every NaN.
    """
    x, boxes = np.asarray(x, dtype=np.float64), np.asarray(rois).astype(precision)
    rows, columns = per_axis(output_size, 2)
    y = np.zeros((len(boxes), x.shape[1], rows, columns))
    for r, (number, x1, y1, x2, y2) in enumerate(boxes):
        scale = precision(spatial_scale)
        for i, j in np.ndindex(rows, columns):
            down = _cells(nearest(y1 * scale), nearest(y2 * scale), i, rows, x.shape[2], precision)
            across = _cells(nearest(x1 * scale), nearest(x2 * scale), j, columns, x.shape[3], precision)
            best = None
            for h in down:
                for w in across:
                    cell = x[int(number), :, h, w]
                    best = cell if best is None else np.where((cell > best) | np.isnan(cell), cell, best)
            if best is not None:
                y[r, :, i, j] = best
    return y


def _cells(start: int, end: int, i: int, bins: int, length: int, precision: Any) -> range:
    """Cells of bin i of a box along an axis of some length."""
    size = precision(max(end - start + 1, 1)) / precision(bins)
    first, after = floor_and_ceil(precision(i) * size, precision(i + 1) * size)
    return cut(first + start, after + start, length)


def companions(x: ArrayLike, output_size: PerAxis, spatial_scale: float = 1.0) -> tuple[NDArray[np.float32]]:
    """Boxes of every kind for an input."""
    return (boxes_to_try(x, spatial_scale),)


METHOD = Method(
    (RoIMaxPool2d,),
    summary="The largest cell of every bin of every box, on a map that the boxes share.",
    paper=Paper("Fast R-CNN", "Girshick", 2015, "arXiv:1504.08083"),
    reference=reference,
    training="largest cell of every bin",
    inference="largest cell of every bin",
    operators=(roi_max_pool,),
    companions=companions,
    companion_axes=("R_",),
    cases=(
        Case("3x3", {"output_size": 3, "spatial_scale": 0.5}, shape=(2, 3, 7, 9)),
        Case("2x5-whole-scale", {"output_size": (2, 5)}, shape=(1, 2, 6, 5)),
        Case("16th", {"output_size": 7, "spatial_scale": 1 / 16}, shape=(1, 2, 9, 7)),
        Case("a-third", {"output_size": (3, 2), "spatial_scale": 1 / 3}, shape=(2, 2, 5, 8)),
        Case("one-bin", {"output_size": 1, "spatial_scale": 0.1}, shape=(2, 2, 4, 6)),
        Case("1x1", {"output_size": 2, "spatial_scale": 0.25}, shape=(2, 3, 1, 1)),
    ),
    space={
        "output_size": (1, 2, 3, 7, (1, 4), (3, 2)),
        "spatial_scale": (1.0, 0.5, 0.25, 1 / 16, 1 / 3, 0.1),
    },
    limits=(
        Limit({"output_size": 0}, ValueError, "output_size must be a positive int"),
        Limit({"output_size": (2, None)}, ValueError, "output_size must be a positive int"),
        Limit({"output_size": (2, 2, 2)}, ValueError, "a tuple of 2"),
        Limit({"output_size": 2, "spatial_scale": 0.0}, ValueError, "spatial_scale must be a finite number above 0"),
        Limit({"output_size": 2}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
        Limit({"output_size": 2}, ValueError, "there is nothing to pool", shape=(1, 3, 0, 4)),
    ),
    notes=(
        "torchvision skips NaN, and answers the lowest finite float32 for a bin of nothing but -inf; here NaN wins, "
        "and that bin is -inf.",
        "The precision of bins is that of the boxes, as in torchvision, where boxes and maps have one type; half "
        "precision is worked out in float32, as torchvision does under autocast.",
        "A file refuses boxes on a map beyond the batch, but takes -1 for the last map; boxes that are not finite give "
        "numbers that mean nothing. The layer refuses all of these.",
        "ONNX's MaxRoiPool says nothing of rounding, and has no kernel in onnxruntime in opset 22 and later; the "
        "exported form is made of other operators in every opset.",
    ),
)
