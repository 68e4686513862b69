"""What an operator is: one name, a torch form and an ONNX form of the same mathematics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
import torch.onnx.ops
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._window import Window, is_half

DOMAIN = "poolexport"
VERSION = 1

OutputShape = Callable[..., Sequence[int]]


def window_output_shape(
    x: Tensor,
    *_: Tensor,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int] | None = None,
    **__: Any,
) -> Sequence[int]:
    """Shape of a windowed operator's output: (N, C, *output lengths)."""
    window = Window.of(kernel_shape, strides, pads, dilations)
    return (*x.shape[:2], *window.output_lengths(x.shape[2:]))


class Operator:
    """A word of the ``poolexport`` domain.

    Called on tensors it runs its torch form. While ``torch.onnx.export`` traces, the call leaves one bare
    ``poolexport::`` node instead; the exporter gives that node a body made of standard operators, written by the ONNX
    form. The two forms stand side by side in one file and must compute the same numbers.

    Args:
        name: operator name in the ONNX style.
        torch_form: ``(*tensors, **attributes) -> Tensor or tuple``; its keyword-only parameters are the attributes.
        onnx_form: ``(body, *values, **attributes) -> value or tuple`` with the same parameters.
        outputs: dtype of each output; ``None`` stands for the dtype of the first input.
        output_shape: ``(*tensors, **attributes) -> shape``, shared by all outputs; sizes may be symbolic.
        widen: float16 and bfloat16 inputs are computed in float32 and rounded once, at the end.
    """

    def __init__(
        self,
        name: str,
        torch_form: Callable[..., Any],
        onnx_form: Callable[..., Any],
        *,
        outputs: Sequence[torch.dtype | None] = (None,),
        output_shape: OutputShape = window_output_shape,
        widen: bool = True,
    ) -> None:
        self.name = name
        self.torch_form = torch_form
        self.onnx_form = onnx_form
        self.outputs = tuple(outputs)
        self.output_shape = output_shape
        self.widen = widen
        self.__doc__ = torch_form.__doc__
        parameters = inspect.signature(torch_form).parameters.values()
        self.attributes = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        self.defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}

    def __repr__(self) -> str:
        return f"<operator {DOMAIN}::{self.name}>"

    def __call__(self, *tensors: Tensor, **attributes: Any) -> Any:
        if torch.onnx.is_in_onnx_export():
            return self._node(tensors, {**self.defaults, **attributes})
        if self.widen and is_half(tensors[0].dtype):
            dtype = tensors[0].dtype
            result = self.torch_form(*(t.float() for t in tensors), **attributes)
            return _each(result, lambda t: t.to(dtype) if t.is_floating_point() else t)
        return self.torch_form(*tensors, **attributes)

    def _node(self, tensors: Sequence[Tensor], attributes: dict[str, Any]) -> Any:
        shape = tuple(self.output_shape(*tensors, **attributes))
        dtypes = [dtype or tensors[0].dtype for dtype in self.outputs]
        kind = f"{DOMAIN}::{self.name}"
        if len(dtypes) == 1:
            return torch.onnx.ops.symbolic(kind, tensors, attributes, dtype=dtypes[0], shape=shape, version=VERSION)
        nodes = torch.onnx.ops.symbolic_multi_out(
            kind, tensors, attributes, dtypes=dtypes, shapes=[shape] * len(dtypes), version=VERSION
        )
        return tuple(nodes)

    def function(
        self, inputs: Sequence[ir.Value], attributes: Mapping[str, ir.Attr], *, opset: int, name: str = ""
    ) -> ir.Function:
        """The body of a node with these inputs and attributes as a model-local function.

        Args:
            inputs: the node's inputs; their dtypes are read.
            attributes: the node's attributes.
            opset: version of the standard operators to use.
            name: of the function, where a model holds several bodies of one operator; the operator's by default.
        """
        dtype = inputs[0].dtype
        if dtype is None:
            raise ValueError(f"{self}: the dtype of input {inputs[0].name!r} is unknown")
        op = Body(opset, self._computes_in(dtype))
        formal = [ir.Value(name=f"input_{i}", type=value.type) for i, value in enumerate(inputs)]
        values = {name: _plain(attribute) for name, attribute in attributes.items()}
        results = self._written(op, formal, dtype, values)
        graph = ir.Graph(formal, results, nodes=op.nodes, opset_imports={"": opset}, name=self.name)
        declared = [ir.Attr(name, attribute.type, None) for name, attribute in attributes.items()]
        return ir.Function(DOMAIN, name or self.name, graph=graph, attributes=declared)

    def write(self, op: Body, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]) -> list[ir.Value]:
        """Write the standard nodes of one call among others.

        Args:
            op: where to write.
            inputs: of the call; their dtypes are read.
            attributes: of the call, as Python values.

        Returns:
            The outputs; no input is one of them.
        """
        dtype = inputs[0].dtype
        if dtype is None:
            raise ValueError(f"{self}: the dtype of input {inputs[0].name!r} is unknown")
        inner = Body(op.opset, self._computes_in(dtype), op.prefix)
        inner.nodes = op.nodes
        return self._written(inner, inputs, dtype, {**self.defaults, **attributes})

    def _computes_in(self, dtype: ir.DataType) -> ir.DataType:
        half = dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        return ir.DataType.FLOAT if self.widen and half else dtype

    def _written(
        self, op: Body, inputs: Sequence[ir.Value], dtype: ir.DataType, attributes: Mapping[str, Any]
    ) -> list[ir.Value]:
        widened = op.dtype != dtype
        actual = [op.cast(value, op.dtype) if widened else value for value in inputs]
        found = self.onnx_form(op, *actual, **attributes)
        results = list(found) if isinstance(found, tuple) else [found]
        for position, kept in enumerate(self.outputs):
            if widened and kept is None:
                results[position] = op.cast(results[position], dtype)
        return [op.Identity(value) if value in inputs else value for value in results]


def _each(result: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return tuple(function(t) for t in result) if isinstance(result, tuple) else function(result)


def _plain(attribute: ir.Attr) -> Any:
    """The attribute as a Python value."""
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(attribute.value)
    return attribute.value
