"""Small models for the server, good and hostile; each takes a file name to be written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[Any]]],
    outputs: dict[str, tuple[int, Sequence[Any]]],
    *,
    opset: int = 17,
    ir_version: int = 9,
    initializers: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> Path:
    """Write a graph of these nodes; shapes may hold names."""
    takes = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    gives = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
    graph = helper.make_graph(list(nodes), "g", takes, gives, list(initializers))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=list(functions))
    path.write_bytes(model.SerializeToString())
    return path


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def mean(path: Path, axes: Sequence[int] = (2, 3), **options: Any) -> Path:
    """The mean of every plane of ``x`` [N, 3, 4, 5]."""
    nodes = [node("ReduceMean", "x", "y", axes=list(axes), keepdims=0)]
    return write(path, nodes, {"x": (FLOAT, ["N", 3, 4, 5])}, {"y": (FLOAT, ["N", 3])}, **options)


def typed(path: Path, kind: int) -> Path:
    """``y`` is ``x``, of any type."""
    return write(path, [node("Identity", "x", "y")], {"x": (kind, ["N", 2])}, {"y": (kind, ["N", 2])})


def slow(path: Path) -> Path:
    """Multiplies a matrix ``n`` times, so that a client chooses how long it takes; about 2 ms for each."""
    weight = numpy_helper.from_array(np.eye(256, dtype=np.float32), "w")
    body = helper.make_graph(
        [node("MatMul", "a w", "b"), node("Identity", "go", "on")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", FLOAT, [256, 256]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", FLOAT, [256, 256]),
        ],
    )
    nodes = [
        node("Constant", "", "yes", value=numpy_helper.from_array(np.array(True))),
        node("ReduceSum", "n", "times", keepdims=0),
        node("Loop", "times yes w", "last", body=body),
        node("ReduceMean", "last", "y", keepdims=0),
    ]
    return write(path, nodes, {"n": (TensorProto.INT64, [1])}, {"y": (FLOAT, [])}, initializers=[weight])


def endless(path: Path) -> Path:
    """A loop without an end."""
    body = helper.make_graph(
        [node("Identity", "go", "on"), node("Identity", "a", "b")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("b", FLOAT, [1])],
    )
    nodes = [
        node("Constant", "", "yes", value=numpy_helper.from_array(np.array(True))),
        helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body),
    ]
    return write(path, nodes, {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])})


def greedy(path: Path) -> Path:
    """Wants 160 GB."""
    length = numpy_helper.from_array(np.array([40 << 30], np.int64), "length")
    nodes = [
        node("ConstantOfShape", "length", "much"),
        node("ReduceSum", "much", "all", keepdims=0),
        node("Add", "all x", "y"),
    ]
    return write(path, nodes, {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}, initializers=[length])


def laughs(path: Path, deep: int = 9) -> Path:
    """A kilobyte of functions that call functions, ten at a time."""
    functions = []
    for level in range(deep):
        inner = [
            helper.make_node(
                "Identity" if not level else f"f{level - 1}", [f"t{i}"], [f"t{i + 1}"], domain="" if not level else "d"
            )
            for i in range(10)
        ]
        functions.append(
            helper.make_function(
                "d", f"f{level}", ["t0"], ["t10"], inner, [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
            )
        )
    top = helper.make_node(f"f{deep - 1}", ["x"], ["y"], domain="d")
    return write(path, [top], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}, functions=functions, domains=["d"])


def cycle(path: Path) -> Path:
    """A function that calls itself."""
    inner = helper.make_node("f", ["a"], ["b"], domain="d")
    function = helper.make_function("d", "f", ["a"], ["b"], [inner], [helper.make_opsetid("d", 1)])
    top = helper.make_node("f", ["x"], ["y"], domain="d")
    return write(path, [top], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}, functions=[function], domains=["d"])


def external(path: Path, location: str, *, offset: str = "0", length: str = "12") -> Path:
    """Adds 3 numbers that are in another file."""
    weight = TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=value)
    return write(path, [node("Add", "x w", "y")], {"x": (FLOAT, [3])}, {"y": (FLOAT, [3])}, initializers=[weight])


def weights(path: Path, raw: bytes, dims: Sequence[int]) -> Path:
    """Adds numbers whose bytes and shape may not agree."""
    weight = TensorProto(name="w", data_type=FLOAT, dims=list(dims), raw_data=raw)
    return write(path, [node("Add", "x w", "y")], {"x": (FLOAT, [3])}, {"y": (FLOAT, [3])}, initializers=[weight])


def pool(path: Path, kind: str = "MaxPool", **attributes: Any) -> Path:
    """One pooling operator on [1, 1, 8, 8]."""
    return write(
        path, [node(kind, "x", "y", **attributes)], {"x": (FLOAT, [1, 1, 8, 8])}, {"y": (FLOAT, [1, 1, "h", "w"])}
    )


def unpool(path: Path) -> Path:
    """MaxUnpool with an index far outside."""
    index = numpy_helper.from_array(np.array([[[[1 << 40]]]], np.int64), "i")
    nodes = [node("MaxUnpool", "x i", "y", kernel_shape=[2, 2], strides=[2, 2])]
    return write(path, nodes, {"x": (FLOAT, [1, 1, 1, 1])}, {"y": (FLOAT, [1, 1, "h", "w"])}, initializers=[index])


def named(path: Path, name: str) -> Path:
    """``y`` is the input, whatever that is called."""
    nodes = [helper.make_node("Identity", [name], ["y"])]
    return write(path, nodes, {name: (FLOAT, [1])}, {"y": (FLOAT, [1])})
