"""Which opsets the installed onnxruntime loads."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest


def runs_opset(opset: int) -> bool:
    """Whether the installed onnxruntime loads models of this opset."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "one", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    try:
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def opsets(*wanted: int) -> list[object]:
    """Parameters for opsets; those the installed onnxruntime does not load are skipped and say so."""
    skip = pytest.mark.skip(reason=f"onnxruntime {ort.__version__} does not load this opset")
    return [pytest.param(opset, marks=() if runs_opset(opset) else skip) for opset in wanted]
