"""Small graphs that show a fault of onnxruntime: one function for every row of the table of traps.

A witness gives trials; a runtime has the fault where it fails at one of them, optimised or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, DOUBLE, HALF, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64
OPSETS = range(17, 29)


@dataclass(frozen=True, eq=False)
class Trial:
    """A graph, what to feed it, and the right answer within ``rtol`` of its largest magnitude.

    ``opset`` is told apart because not every runtime loads every one.
    """

    name: str
    model: bytes
    feed: Mapping[str, np.ndarray]
    expected: np.ndarray
    rtol: float
    opset: int


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    expected: np.ndarray,
    *,
    constants: Mapping[str, np.ndarray] | None = None,
    dynamic: bool = False,
    rtol: float = 1e-6,
    opset: int = 20,
    name: str = "",
    functions: Sequence[onnx.FunctionProto] = (),
) -> Trial:
    """A trial of a graph whose last node computes ``y``."""

    def info(label: str, array: np.ndarray, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return helper.make_tensor_value_info(label, kind, shape)

    def shape(array: np.ndarray) -> list[int | str]:
        return ["N", *array.shape[1:]] if dynamic and array.ndim else list(array.shape)

    made = helper.make_graph(
        list(nodes),
        "witness",
        [info(label, array, shape(array)) for label, array in inputs.items()],
        [info("y", expected, None)],
        initializer=[numpy_helper.from_array(array, label) for label, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    model = helper.make_model(made, opset_imports=imports, functions=functions, ir_version=10)
    return Trial(name or f"opset {opset}", model.SerializeToString(), dict(inputs), expected, rtol, opset)


node = helper.make_node


def overloads() -> Iterator[Trial]:
    """Two functions of one name, told apart by their overload names."""
    x = np.array([1.0, 0.5], np.float32)
    own = [helper.make_opsetid("", 20)]
    functions = []
    for overload, op in (("one", "Neg"), ("two", "Exp")):
        function = helper.make_function("own", "F", ["a"], ["b"], [node(op, ["a"], ["b"])], own)
        function.overload = overload
        functions.append(function)
    calls = [node("F", ["x"], ["h"], domain="own"), node("F", ["h"], ["y"], domain="own")]
    calls[0].overload, calls[1].overload = "one", "two"
    yield graph(calls, {"x": x}, np.exp(-x), functions=functions)


def _average(x: np.ndarray, k: int, s: int, p: int, include: bool, ceil: bool) -> np.ndarray:
    """torch's average pooling over two equal axes, from its definition."""
    n = x.shape[2]
    lengths = (n + 2 * p - k + (s - 1 if ceil else 0)) // s + 1
    if ceil and (lengths - 1) * s >= n + p:
        lengths -= 1
    y = np.zeros((*x.shape[:2], lengths, lengths))
    for i, j in product(range(lengths), repeat=2):
        at, end = [i * s - p, j * s - p], [min(i * s - p + k, n + p), min(j * s - p + k, n + p)]
        inner = [(max(a, 0), min(e, n)) for a, e in zip(at, end)]
        cells = x[:, :, inner[0][0] : inner[0][1], inner[1][0] : inner[1][1]].astype(np.float64)
        size = np.prod([e - a for a, e in zip(at, end)]) if include else np.prod(cells.shape[2:])
        y[:, :, i, j] = cells.sum((2, 3)) / size
    return y.astype(x.dtype)


def _ceil(include: bool, settings: Sequence[tuple[int, int, int, int]]) -> Iterator[Trial]:
    rng = np.random.default_rng(0)
    for opset, (k, s, p, n) in product(OPSETS, settings):
        # Enough channels for the kernels that hold them in blocks.
        x = rng.standard_normal((1, 16, n, n)).astype(np.float32)
        attributes = {"kernel_shape": [k, k], "strides": [s, s], "pads": [p] * 4, "ceil_mode": 1}
        pool = node("AveragePool", ["x"], ["y"], count_include_pad=int(include), **attributes)
        label = f"{opset}: k{k} s{s} p{p} n{n}"
        yield graph([pool], {"x": x}, _average(x, k, s, p, include, True), opset=opset, name=label)


def ceil_last_window() -> Iterator[Trial]:
    """AveragePool with ceil_mode, where a last window would lie on no cell of the input."""
    yield from _ceil(False, ((1, 2, 0, 6), (1, 3, 0, 5), (2, 3, 1, 6)))


def ceil_count() -> Iterator[Trial]:
    """AveragePool with ceil_mode, where a last window hangs over the end of the input."""
    yield from _ceil(True, ((2, 2, 0, 5), (3, 2, 0, 6), (3, 2, 1, 8), (3, 3, 0, 7)))


#: Zeros around an image of two axes: at the end, on every side, along one axis.
PADS = {"end": (0, 0, 1, 1), "around": (1, 1, 1, 1), "rows": (1, 0, 1, 0)}


def _padded(op: str, opset: int, where: str, value: float, **attributes: int) -> Trial:
    x = -np.arange(1, 64, dtype=np.float32).reshape(1, 1, 7, 9)
    top, left, bottom, right = PADS[where]
    whole = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)
    rows, columns = whole.shape[2] // 2, whole.shape[3] // 2
    cells = [whole[..., i : i + 2 * rows : 2, j : j + 2 * columns : 2] for i, j in product((0, 1), (0, 1))]
    expected = np.max(cells, axis=0) if op == "MaxPool" else np.mean(cells, axis=0)
    nodes = [
        node("Pad", ["x", "pads", "value"], ["h"]),
        node(op, ["h"], ["y"], kernel_shape=[2, 2], strides=[2, 2], **attributes),
    ]
    constants = {"pads": np.array([0, 0, top, left, 0, 0, bottom, right]), "value": np.array(value, np.float32)}
    label = f"{opset}, {where}, {value}, {attributes}"
    return graph(nodes, {"x": x}, expected.astype(np.float32), constants=constants, opset=opset, name=label)


def pad_then_average() -> Iterator[Trial]:
    """A border, then AveragePool."""
    for opset, where, value, include in product(OPSETS, PADS, (0.0, 5.0), (0, 1)):
        yield _padded("AveragePool", opset, where, value, count_include_pad=include)


def pad_then_max() -> Iterator[Trial]:
    """A border above what is inside it, then MaxPool."""
    for opset, where, value in product(OPSETS, PADS, (0.0, 5.0)):
        yield _padded("MaxPool", opset, where, value)


def uneven_pads() -> Iterator[Trial]:
    """AveragePool whose pads differ by side or by axis."""
    x = np.arange(1, 64, dtype=np.float32).reshape(1, 1, 7, 9)
    for opset, pads in product(OPSETS, ([0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0])):
        padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
        rows, columns = padded.shape[2] // 2, padded.shape[3] // 2
        y = sum(padded[..., i : i + 2 * rows : 2, j : j + 2 * columns : 2] for i, j in product((0, 1), (0, 1))) / 4
        pool = node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], pads=pads, count_include_pad=1)
        yield graph([pool], {"x": x}, y.astype(np.float32), opset=opset, name=f"{opset}, {pads}")


def max_pool_nan() -> Iterator[Trial]:
    for at in range(4):
        x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
        x.flat[at] = np.nan
        pool = node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])
        yield graph([pool], {"x": x}, np.full((1, 1, 1, 1), np.nan, np.float32), name=f"NaN at {at}")


def reduce_max_nan() -> Iterator[Trial]:
    for at in range(4):
        x = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
        x[0, at] = np.nan
        reduce = node("ReduceMax", ["x", "axes"], ["y"], keepdims=0)
        expected = np.array([np.nan], np.float32)
        yield graph([reduce], {"x": x}, expected, constants={"axes": np.array([1])}, name=f"NaN at {at}")


def global_max_of_minus_infinity() -> Iterator[Trial]:
    x = np.full((1, 1, 3, 3), -np.inf, np.float32)
    yield graph([node("GlobalMaxPool", ["x"], ["y"])], {"x": x}, x[:, :, :1, :1])


def scalar_beside_matmul() -> Iterator[Trial]:
    """A float64 product times a number that float32 cannot hold."""
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 4)), rng.standard_normal((4, 5)), np.array(1 / 3)
    nodes = [node("MatMul", ["a", "b"], ["h"]), node("Mul", ["h", "c"], ["y"])]
    yield graph(nodes, {"a": a, "b": b}, a @ b / 3, constants={"c": c}, rtol=1e-13)


def transpose_beside_matmul() -> Iterator[Trial]:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 5, 4))
    nodes = [node("Transpose", ["b"], ["t"], perm=[0, 2, 1]), node("MatMul", ["a", "t"], ["y"])]
    yield graph(nodes, {"a": a, "b": b}, a @ b.transpose(0, 2, 1), rtol=1e-13)


def layer_norm_in_parts() -> Iterator[Trial]:
    """A float64 layer norm, spelled out."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 16))
    centred = x - x.mean(-1, keepdims=True)
    scale, bias = rng.standard_normal(16), rng.standard_normal(16)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias
    nodes = [
        node("ReduceMean", ["x", "axes"], ["m"]),
        node("Sub", ["x", "m"], ["d"]),
        node("Pow", ["d", "two"], ["q"]),
        node("ReduceMean", ["q", "axes"], ["v"]),
        node("Add", ["v", "eps"], ["e"]),
        node("Sqrt", ["e"], ["r"]),
        node("Div", ["d", "r"], ["n"]),
        node("Mul", ["n", "scale"], ["s"]),
        node("Add", ["s", "bias"], ["y"]),
    ]
    constants = {"axes": np.array([-1]), "two": np.array(2.0), "eps": np.array(1e-5), "scale": scale, "bias": bias}
    yield graph(nodes, {"x": x}, y, constants=constants, rtol=1e-13)


def einsum_of_nothing() -> Iterator[Trial]:
    a, b = np.zeros((0, 3, 4), np.float32), np.zeros((0, 4, 5), np.float32)
    yield graph(
        [node("Einsum", ["a", "b"], ["y"], equation="bij,bjk->bik")],
        {"a": a, "b": b},
        np.zeros((0, 3, 5), np.float32),
        dynamic=True,
    )


def matmul_of_one_and_none() -> Iterator[Trial]:
    a, b = np.zeros((1, 3, 4), np.float32), np.zeros((0, 4, 5), np.float32)
    yield graph([node("MatMul", ["a", "b"], ["y"])], {"a": a, "b": b}, np.zeros((0, 3, 5), np.float32))


def reduce_of_nothing() -> Iterator[Trial]:
    """A reduction over the last axis, counted from the end, of an empty batch."""
    for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"):
        x = np.zeros((0, 3, 4), np.float32)
        reduce = node(op, ["x", "axes"], ["y"], keepdims=1)
        expected = np.zeros((0, 3, 1), np.float32)
        yield graph([reduce], {"x": x}, expected, constants={"axes": np.array([-1])}, dynamic=True, name=op)


def top_of_nothing() -> Iterator[Trial]:
    x = np.zeros((0, 3, 4), np.float32)
    yield graph(
        [node("TopK", ["x", "k"], ["y", "i"], axis=-1)],
        {"x": x},
        np.zeros((0, 3, 2), np.float32),
        constants={"k": np.array([2])},
        dynamic=True,
    )


def exp_of_minus_infinity() -> Iterator[Trial]:
    x = np.full(9, -np.inf)
    yield graph([node("Exp", ["x"], ["y"])], {"x": x}, np.zeros(9), rtol=0.0)


def root_of_infinity() -> Iterator[Trial]:
    for dtype in (np.float32, np.float64):
        x = np.full(17, np.inf, dtype)
        yield graph([node("Sqrt", ["x"], ["y"])], {"x": x}, x, name=np.dtype(dtype).name)


def long_sum() -> Iterator[Trial]:
    """A float32 mean over a plane of ordinary size, away from 0."""
    x = (1000 + np.random.default_rng(0).standard_normal((1, 1, 1024, 1024))).astype(np.float32)
    expected = x.mean((2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    yield graph([node("GlobalAveragePool", ["x"], ["y"])], {"x": x}, expected, rtol=5e-7)


WITNESSES: dict[str, Callable[[], Iterator[Trial]]] = {
    "overload names": overloads,
    "AveragePool: ceil_mode, last window": ceil_last_window,
    "AveragePool: ceil_mode below opset 19": ceil_count,
    "AveragePool: ceil_mode from opset 19 on": ceil_count,
    "Pad then AveragePool": pad_then_average,
    "Pad then MaxPool: opsets up to 20": pad_then_max,
    "Pad then MaxPool: opsets from 21 on": pad_then_max,
    "AveragePool: uneven pads": uneven_pads,
    "MaxPool: NaN": max_pool_nan,
    "ReduceMax: NaN": reduce_max_nan,
    "GlobalMaxPool: -inf": global_max_of_minus_infinity,
    "MatMul: scalar factor": scalar_beside_matmul,
    "MatMul: Transpose": transpose_beside_matmul,
    "layer norm in parts": layer_norm_in_parts,
    "Einsum: empty batch": einsum_of_nothing,
    "MatMul: empty batch": matmul_of_one_and_none,
    "reductions: empty batch": reduce_of_nothing,
    "TopK: empty batch": top_of_nothing,
    "Exp: -inf": exp_of_minus_infinity,
    "Sqrt: inf": root_of_infinity,
    "long sums": long_sum,
}
