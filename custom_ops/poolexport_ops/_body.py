"""A small writer of ONNX nodes, and the few fragments that pooling bodies share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from poolexport_ops._window import Window

INT64_MAX = np.iinfo(np.int64).max


class Body:
    """Collects the nodes of one operator body; ``body.Add(a, b)`` appends an Add node and returns its output.

    Args:
        opset: version of the standard operators to write.
        dtype: floating type in which the body computes.
        prefix: begins the names of all values and nodes; inside a loop they must not be those outside of it.
    """

    def __init__(self, opset: int, dtype: ir.DataType, prefix: str = "") -> None:
        self.opset = opset
        self.dtype = dtype
        self.prefix = prefix
        self.nodes: list[ir.Node] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)

        def append(*inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> Any:
            node = ir.Node(
                "",
                op_type,
                inputs,
                [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()],
                num_outputs=outputs,
                name=f"{self.prefix}{op_type}_{len(self.nodes)}",
            )
            for position, output in enumerate(node.outputs):
                output.name = f"{self.prefix}v{len(self.nodes)}_{position}"
            self.nodes.append(node)
            return node.outputs[0] if outputs == 1 else node.outputs

        return append

    def constant(self, array: np.ndarray) -> ir.Value:
        """A Constant; equal ones are written once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.Constant(value=ir.tensor(array))
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        """A vector of int64."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> ir.Value:
        """A scalar of the type the body computes in."""
        return self.constant(np.array(value, self.dtype.numpy()))

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.Cast(x, to=int(dtype))

    def inside(self, name: str) -> Body:
        """The body of a graph inside of this one, which may use its values."""
        return Body(self.opset, self.dtype, f"{self.prefix}{name}{len(self.nodes)}_")

    def wide(self) -> Body:
        """The same body, for nodes that compute in float64."""
        wide = Body(self.opset, ir.DataType.DOUBLE, self.prefix)
        wide.nodes = self.nodes
        return wide

    def pad(self, x: ir.Value, window: Window, value: float) -> ir.Value:
        """``x`` with the window's pads filled with ``value``."""
        if not window.padded:
            return x
        pads = self.ints(0, 0, *window.begin, 0, 0, *window.end)
        return self.Pad(x, pads, self.number(value), mode="constant")

    def taps(self, x: ir.Value, window: Window, axis: int) -> list[ir.Value]:
        """The k strided slices of the padded ``x`` along a spatial axis: slice t holds tap t of every window."""
        if window.kernel_shape[axis] == 1 and window.strides[axis] == 1:
            return [x]
        return [
            self.Slice(
                x,
                self.ints(start),
                self.ints(INT64_MAX if end is None else end),
                self.ints(2 + axis),
                self.ints(window.strides[axis]),
            )
            for start, end in window.taps(axis)
        ]

    def cells(self, x: ir.Value, window: Window, pad_value: float) -> list[ir.Value]:
        """The cells of every window, one output-shaped tensor per cell, in row-major order."""
        cells = [self.pad(x, window, pad_value)]
        for axis in range(window.rank):
            cells = [tap for cell in cells for tap in self.taps(cell, window, axis)]
        return cells

    def reduce(self, x: ir.Value, window: Window, pad_value: float, op_type: str) -> ir.Value:
        """Max, Min or Sum of every window, one axis after the other: k + k slices instead of k * k."""
        x = self.pad(x, window, pad_value)
        for axis in range(window.rank):
            taps = self.taps(x, window, axis)
            x = taps[0] if len(taps) == 1 else getattr(self, op_type)(*taps)
        return x

    def mean(self, x: ir.Value, window: Window, counted: Sequence[int] | None = None) -> ir.Value:
        """Mean of every window over its cells on the input and on the first ``counted`` pads of each side.

        Pads are zeros; all of them count where ``counted`` is None.
        """
        pads = window.pads
        counted = pads if counted is None else tuple(counted)
        # onnxruntime 1.22 to 1.24 divide wrongly where pads differ, by axis or by side; none has a float64 kernel; and
        # dilations came with opset 19.
        uniform = len(set(pads)) == 1 and set(window.dilations) == {1}
        # All releases refuse pads as long as the kernel.
        standard = self.dtype != ir.DataType.DOUBLE and uniform and pads[0] < min(window.kernel_shape)
        pads_count = counted == pads or any(counted)
        if standard:
            mean = self.AveragePool(
                x,
                kernel_shape=window.kernel_shape,
                strides=window.strides,
                pads=pads,
                count_include_pad=int(pads_count),
            )
        else:
            mean = self.Div(self.reduce(x, window, 0.0, "Sum"), self.number(window.size))
        divided = counted == pads or (standard and not pads_count)
        return mean if divided else self.Div(mean, self.coverage(x, window, counted))

    def coverage(self, x: ir.Value, window: Window, counted: Sequence[int]) -> ir.Value:
        """Share of every window's cells that lie on the input or on the first ``counted`` pads of each side.

        Shape (1, 1, *output); 1 away from the borders.
        """
        rank = window.rank
        begin, end = counted[:rank], counted[rank:]
        lengths = self.Slice(self.Shape(x), self.ints(2), self.ints(2 + rank), self.ints(0))
        lengths = self.Add(lengths, self.ints(*(b + e for b, e in zip(begin, end))))
        ones = self.Expand(self.number(1.0), self.Concat(self.ints(1, 1), lengths, axis=0))
        rest = tuple(p - c for p, c in zip(window.pads, counted))
        return self.mean(ones, Window(window.kernel_shape, window.strides, rest, window.dilations))


def total(op: Body, terms: Sequence[ir.Value]) -> ir.Value:
    """Sum of one or more tensors; of many, that of sums of some, whose rounding adds up to less."""
    side = math.isqrt(len(terms))
    if side > 5:
        terms = [op.Sum(*terms[i : i + side]) for i in range(0, len(terms), side)]
    return terms[0] if len(terms) == 1 else op.Sum(*terms)


def largest(op: Body, terms: Sequence[ir.Value]) -> ir.Value:
    """Largest of one or more tensors, element by element."""
    return terms[0] if len(terms) == 1 else op.Max(*terms)
