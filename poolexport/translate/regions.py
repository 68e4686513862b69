"""torchvision's poolings of regions, where torchvision is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from poolexport.translate._writing import Size, Write, Writer, fixed
from poolexport_ops.position_sensitive_roi_pool import position_sensitive_roi_pool
from poolexport_ops.roi_align_pool import roi_align_pool
from poolexport_ops.roi_max_pool import roi_max_pool


def entries() -> dict[str, Write]:
    return {
        "torchvision::roi_pool": _roi_pool,
        "torchvision::ps_roi_pool": _ps_roi_pool,
        "torchvision::roi_align": _roi_align,
    }


def _bins(pooled_height: Size, pooled_width: Size) -> list[int]:
    return fixed([pooled_height, pooled_width], "the output size of a pooling of regions", 2)


def _unknown_places(writer: Writer, y: ir.Value) -> ir.Value:
    """-1 all over: where maxima are, only the gradient wants to know."""
    return writer.op.ConstantOfShape(writer.op.Shape(y), value=ir.tensor(np.full(1, -1, np.int32)))


def _roi_pool(
    writer: Writer, input: ir.Value, rois: ir.Value, spatial_scale: float, pooled_height: Size, pooled_width: Size
) -> Any:
    scale = repr(float(spatial_scale))
    y = writer.call(roi_max_pool, input, rois, output_size=_bins(pooled_height, pooled_width), spatial_scale=scale)
    return y, _unknown_places(writer, y)


def _ps_roi_pool(
    writer: Writer, input: ir.Value, rois: ir.Value, spatial_scale: float, pooled_height: Size, pooled_width: Size
) -> Any:
    y = writer.call(
        position_sensitive_roi_pool,
        input,
        rois,
        output_size=_bins(pooled_height, pooled_width),
        spatial_scale=repr(float(spatial_scale)),
        rule="torchvision",
    )
    return y, _unknown_places(writer, y)


def _roi_align(
    writer: Writer,
    input: ir.Value,
    rois: ir.Value,
    spatial_scale: float,
    pooled_height: Size,
    pooled_width: Size,
    sampling_ratio: int,
    aligned: bool,
) -> Any:
    return writer.call(
        roi_align_pool,
        input,
        rois,
        output_size=_bins(pooled_height, pooled_width),
        spatial_scale=repr(float(spatial_scale)),
        sampling_ratio=max(0, sampling_ratio),
        aligned=int(aligned),
    )
