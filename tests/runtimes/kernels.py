"""One node of every operator that networks are made of, in every type and opset: which of them does a runtime load?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = range(17, 29)
TYPES = {"FLOAT": TensorProto.FLOAT, "DOUBLE": TensorProto.DOUBLE, "FLOAT16": TensorProto.FLOAT16}
IMAGE = [1, 2, 8, 8]
UNARY = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid", "HardSwish", "Mish", "Gelu"),
    *("Sigmoid", "Tanh", "Softplus", "Softsign", "Exp", "Log", "Sqrt", "Reciprocal", "Abs", "Neg", "Floor", "Ceil"),
    *("Round", "Sign", "Erf", "Sin", "Cos", "Asin", "Acos", "Atan", "Tan", "Sinh", "Cosh", "GlobalAveragePool"),
    *("GlobalMaxPool", "GlobalLpPool", "Softmax", "LogSoftmax", "Flatten", "Identity", "Dropout", "IsNaN", "IsInf"),
)
BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Equal", "Less", "Greater")
REDUCTIONS = (
    *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum"),
    *("ReduceLogSumExp", "ReduceSumSquare", "ReduceSum"),
)
#: Operators that a later opset brought.
SINCE = {"Mish": 18, "Gelu": 20}

Spec = tuple[str, Sequence[Sequence[int]], dict[str, Any], dict[str, np.ndarray | None]]


def specs(opset: int) -> Iterator[Spec]:
    """Operator, shapes of its inputs, attributes, and constant inputs after those; None stands for an absent one."""

    def ints(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    for name in UNARY:
        if SINCE.get(name, 0) <= opset:
            yield name, [IMAGE], {}, {}
    for name in BINARY:
        yield name, [IMAGE, IMAGE], {}, {}
    for name in REDUCTIONS:
        if opset < 18 and name != "ReduceSum":
            yield name, [IMAGE], {"axes": [2, 3]}, {}
        else:
            yield name, [IMAGE], {}, {"axes": ints(2, 3)}
    kernel = {"kernel_shape": [2, 2]}
    for name in ("AveragePool", "MaxPool", "LpPool"):
        yield name, [IMAGE], kernel, {}
    yield "Conv", [IMAGE, [2, 2, 3, 3]], {}, {}
    yield "ConvTranspose", [IMAGE, [2, 2, 3, 3]], {}, {}
    yield "BatchNormalization", [IMAGE, [2], [2], [2], [2]], {}, {}
    yield "InstanceNormalization", [IMAGE, [2], [2]], {}, {}
    yield "LayerNormalization", [IMAGE, [8]], {}, {}
    yield "LRN", [IMAGE], {"size": 3}, {}
    yield "Gemm", [[3, 4], [4, 5], [5]], {}, {}
    yield "MatMul", [[3, 4], [4, 5]], {}, {}
    yield "Einsum", [[3, 4], [4, 5]], {"equation": "ij,jk->ik"}, {}
    yield "Pad", [IMAGE], {}, {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1)}
    yield "Resize", [IMAGE], {}, {"roi": None, "scales": np.array([1, 1, 2, 2], np.float32)}
    yield "GridSample", [IMAGE, [1, 4, 4, 2]], {}, {}
    yield "RoiAlign", [IMAGE, [2, 4]], {"output_height": 2, "output_width": 2}, {"batch": ints(0, 0)}
    yield "MaxRoiPool", [IMAGE, [2, 5]], {"pooled_shape": [2, 2]}, {}
    yield "TopK", [IMAGE], {}, {"k": ints(2)}
    yield "CumSum", [IMAGE], {}, {"axis": np.array(1, np.int64)}
    yield "Expand", [IMAGE], {}, {"shape": ints(*IMAGE)}
    yield "PRelu", [IMAGE, [2, 1, 1]], {}, {}
    yield "DepthToSpace", [[1, 4, 4, 4]], {"blocksize": 2}, {}
    yield "SpaceToDepth", [IMAGE], {"blocksize": 2}, {}
    yield "Clip", [IMAGE, [], []], {}, {}
    yield "Gather", [IMAGE], {"axis": 3}, {"indices": ints(0, 1)}
    yield "GatherND", [IMAGE], {}, {"indices": np.array([[0, 1]], np.int64)}
    yield "GatherElements", [IMAGE], {}, {"indices": np.zeros(IMAGE, np.int64)}
    yield "Transpose", [IMAGE], {"perm": [0, 2, 3, 1]}, {}
    yield "Reshape", [IMAGE], {}, {"shape": ints(1, -1)}
    yield "Slice", [IMAGE], {}, {"starts": ints(0), "ends": ints(3), "axes": ints(2)}
    yield "Concat", [IMAGE, IMAGE], {"axis": 1}, {}
    yield "Squeeze", [[1, 2]], {}, {"axes": ints(0)}
    yield "Unsqueeze", [IMAGE], {}, {"axes": ints(0)}
    yield "Tile", [IMAGE], {}, {"repeats": ints(1, 2, 1, 1)}
    yield "Trilu", [[4, 4]], {}, {}
    yield "Split", [IMAGE], {"axis": 1}, {"split": ints(1, 1)}


def probes() -> Iterator[tuple[str, str, int, bytes]]:
    """Operator, type, opset and model of every probe."""
    for opset in OPSETS:
        for dtype, number in TYPES.items():
            for name, shapes, attributes, constants in specs(opset):
                yield name, dtype, opset, model(name, number, opset, shapes, attributes, constants)


def model(
    name: str,
    dtype: int,
    opset: int,
    shapes: Sequence[Sequence[int]],
    attributes: dict[str, Any],
    constants: dict[str, np.ndarray | None],
) -> bytes:
    inputs = [helper.make_tensor_value_info(f"x{i}", dtype, shape) for i, shape in enumerate(shapes)]
    feeds = [value.name for value in inputs] + [key if value is not None else "" for key, value in constants.items()]
    outputs = ["y", *(["rest"] if name in ("TopK", "Split") else [])]
    graph = helper.make_graph(
        [helper.make_node(name, feeds, outputs, **attributes)],
        "probe",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.BOOL if name in BOOLEAN else dtype, None)],
        initializer=[numpy_helper.from_array(value, key) for key, value in constants.items() if value is not None],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return bytes(made.SerializeToString())


BOOLEAN = {"Equal", "Less", "Greater", "IsNaN", "IsInf"}


def bare(opset: int, ir_version: int) -> bytes:
    """A model that asks for nothing but an opset and an IR version."""
    info = helper.make_tensor_value_info
    node = helper.make_node("Abs", ["x"], ["y"])
    graph = helper.make_graph([node], "bare", [info("x", TensorProto.FLOAT, [1])], [info("y", TensorProto.FLOAT, [1])])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = ir_version
    return bytes(onnx.ModelProto.SerializeToString(made))
