"""RoIAlign (Mask R-CNN): the mean of interpolated samples in every bin of every box, without rounding the box.

start, length = start scale - o, (end - start) scale        o = 1/2 if aligned; else o = 0, and length is at least 1
b, S = length / P, sampling ratio                           cells and samples per bin; S = ceil(b) if it is not given
y_i = mean over t = 0 ... S - 1 of x at start + i b + (t + 1/2) b / S       along both axes, by bilinear interpolation

A sample more than a cell outside of the map is 0, one less than that is the nearest cell. Training and inference are
the same; there is nothing to learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._rois import RoILayer, boxes_to_try
from poolexport.reference import Floats, PerAxis, exact_sum, per_axis
from poolexport_ops.roi_align_pool import roi_align_pool


class RoIAlign2d(RoILayer):
    """Mean of the samples of every bin of every box; a neighbour of weight 0 adds nothing, whatever it holds.

    ``forward(x, rois)`` takes boxes as (R, 5), the number of a map and x1, y1, x2, y2 in units of the image, or as a
    list with (L, 4) for every map. Where samples are is worked out in the type of the boxes; for maps or boxes of half
    precision in float32. Weights and sums are in float64.

    Args:
        output_size: bins per box, an int or rows and columns.
        spatial_scale: cells of the map per unit of the boxes; 1/16 for a map of every 16th pixel.
        sampling_ratio: samples per bin and axis; 0 or less for as many as a bin has cells, rounded up.
        aligned: whether the centre of the first pixel is at 1/2; without it, at 0, and boxes are at least a cell long.
            A reversed box gives zeros where ``aligned`` meets no given ``sampling_ratio``.

    Shape:
        (N, C, H, W) and (R, 5) to (R, C, *output_size); R may be 0.

    Raises:
        ValueError: an option out of range, an input of another rank or without cells, or boxes that are not of that
            shape, not floating numbers, not finite, or on a map that the batch does not have.

    Example:
        >>> import torch
        >>> from poolexport.nn import RoIAlign2d
        >>> x = torch.arange(12.0).reshape(1, 1, 3, 4)
        >>> RoIAlign2d((1, 2), sampling_ratio=1)(x, torch.tensor([[0.0, 0.0, 0.0, 3.0, 2.0]]))
        tensor([[[[4.7500, 6.2500]]]])

    Source:
        He, Gkioxari, Dollar, Girshick, ICCV 2017, section 3; torchvision.ops.RoIAlign, also for ``aligned``.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        aligned: bool = False,
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, x: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_align_pool(
            x,
            self.boxes(x, rois),
            **self.options(),
            sampling_ratio=max(0, self.sampling_ratio),
            aligned=int(self.aligned),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"


def reference(
    x: ArrayLike,
    rois: ArrayLike,
    output_size: PerAxis,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    precision: Any = np.float32,
) -> Floats:
    """RoIAlign, slowly: sample after sample, each by its four neighbours; positions are in the given precision."""
    x, boxes = np.asarray(x, dtype=np.float64), np.asarray(rois).astype(precision)
    rows, columns = per_axis(output_size, 2)
    y = np.zeros((len(boxes), x.shape[1], rows, columns))
    for r, (number, x1, y1, x2, y2) in enumerate(boxes):
        down = _samples(y1, y2, spatial_scale, sampling_ratio, aligned, rows, precision)
        across = _samples(x1, x2, spatial_scale, sampling_ratio, aligned, columns, precision)
        for i, j in np.ndindex(rows, columns):
            terms = [_sample(x[int(number)], float(v), float(u)) for v in down[i] for u in across[j]]
            if terms:
                y[r, :, i, j] = exact_sum(np.stack(terms, axis=-1), len(terms))
    return y


def _samples(
    low: Any, high: Any, spatial_scale: float, ratio: int, aligned: bool, bins: int, precision: Any
) -> list[list[Any]]:
    """Positions of the samples of every bin along an axis."""
    scale, offset = precision(spatial_scale), precision(0.5 if aligned else 0.0)
    start, end = low * scale - offset, high * scale - offset
    length = end - start if aligned else max(end - start, precision(1))
    size = length / precision(bins)
    count = ratio if ratio > 0 else math.ceil(size)
    return [
        [start + precision(i) * size + (precision(t) + precision(0.5)) * size / precision(count) for t in range(count)]
        for i in range(bins)
    ]


def _sample(planes: Floats, v: float, u: float) -> Floats:
    """Value of every plane at row v and column u."""
    height, width = planes.shape[1:]
    if not (-1 <= v <= height and -1 <= u <= width):
        return np.zeros(len(planes))
    v, u = min(max(v, 0.0), height - 1.0), min(max(u, 0.0), width - 1.0)
    terms = []
    for h in range(height):
        for w in range(width):
            weight = max(0.0, 1 - abs(v - h)) * max(0.0, 1 - abs(u - w))
            if weight > 0:
                terms.append(weight * planes[:, h, w])
    return exact_sum(np.stack(terms, axis=-1))


def companions(
    x: ArrayLike, output_size: PerAxis, spatial_scale: float = 1.0, sampling_ratio: int = -1, aligned: bool = False
) -> tuple[NDArray[np.float32]]:
    """Boxes of every kind for an input."""
    return (boxes_to_try(x, spatial_scale),)


METHOD = Method(
    (RoIAlign2d,),
    summary="The mean of interpolated samples in every bin of every box.",
    paper=Paper("Mask R-CNN", "He, Gkioxari, Dollar, Girshick", 2017, "arXiv:1703.06870"),
    reference=reference,
    training="mean of the samples",
    inference="mean of the samples",
    operators=(roi_align_pool,),
    companions=companions,
    companion_axes=("R_",),
    cases=(
        Case("2x2", {"output_size": 2, "spatial_scale": 0.5}, shape=(2, 2, 6, 7)),
        Case("two-samples", {"output_size": (2, 3), "sampling_ratio": 2}, shape=(1, 2, 5, 6)),
        Case("aligned", {"output_size": 3, "spatial_scale": 1 / 16, "aligned": True}, shape=(1, 2, 6, 5)),
        Case(
            "aligned-one-sample",
            {"output_size": (3, 2), "spatial_scale": 1 / 3, "sampling_ratio": 1, "aligned": True},
            shape=(2, 2, 4, 6),
        ),
        Case("one-bin", {"output_size": 1, "spatial_scale": 0.1, "sampling_ratio": 0}, shape=(1, 2, 4, 5)),
        Case("1x1", {"output_size": 2, "spatial_scale": 0.25, "sampling_ratio": 2}, shape=(2, 3, 1, 1)),
    ),
    space={
        "output_size": (1, 2, 3, (1, 4), (3, 2)),
        "spatial_scale": (1.0, 0.5, 1 / 16, 1 / 3),
        "sampling_ratio": (-1, 0, 1, 2),
        "aligned": (False, True),
    },
    limits=(
        Limit({"output_size": 0}, ValueError, "output_size must be a positive int"),
        Limit({"output_size": (2, 2, 2)}, ValueError, "a tuple of 2"),
        Limit({"output_size": 2, "spatial_scale": -1.0}, ValueError, "spatial_scale must be a finite number above 0"),
        Limit({"output_size": 2, "sampling_ratio": 1.5}, ValueError, "sampling_ratio must be an int"),
        Limit({"output_size": 2}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
        Limit({"output_size": 2}, ValueError, "there is nothing to pool", shape=(1, 3, 0, 4)),
    ),
    notes=(
        "Samples are where torchvision puts them, in float32 for float32 boxes, so as many fall into a bin; weights "
        "and sums are in float64 here.",
        "torchvision multiplies by a weight of 0, so NaN and infinities reach samples beside them; here they do not. "
        "Its CPU form may end the process on a reversed box that is aligned and has no given "
        "ratio; here that box is 0.",
        "torchvision's form for GPUs may keep a product and a sum unrounded between them; positions can differ by a "
        "rounding.",
        "A file refuses boxes on a map beyond the batch, but takes -1 for the last map; boxes that are not finite give "
        "numbers that mean nothing. The layer refuses all of these.",
        "ONNX's RoiAlign has no kernel in onnxruntime in opset 22 and later; the exported form is made of other "
        "operators in every opset.",
        "Without a given ratio a box takes as many samples as it has cells, on the map or not: memory grows with boxes "
        "that are much larger than the map.",
    ),
)
