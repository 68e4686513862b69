"""Bins and boxes."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def max_roi_pool(size: tuple[int, int], scale: float) -> bytes:
    """A model of ONNX's own operator for RoI max pooling, which no exporter of torch writes."""
    value = helper.make_tensor_value_info
    node = helper.make_node("MaxRoiPool", ["x", "rois"], ["y"], pooled_shape=size, spatial_scale=scale)
    inputs = [value("x", TensorProto.FLOAT, [None] * 4), value("rois", TensorProto.FLOAT, [None, 5])]
    graph = helper.make_graph([node], "roi", inputs, [value("y", TensorProto.FLOAT, [None] * 4)])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()
