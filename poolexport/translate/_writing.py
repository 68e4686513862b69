"""How an entry of the table writes: into the graph that torch's exporter is building at the moment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import evaluator

from poolexport.errors import ExportError
from poolexport.runtime.traps import LOADS, missing
from poolexport_ops import DOMAIN, VERSION, Operator
from poolexport_ops._body import Body

#: torch's exporter builds every graph with these operators, and converts the finished graph to the version asked for.
BUILT_WITH = 18

Size = int | ir.Value


class Writer:
    """Writes nodes for one call of an aten operator; standard ones through ``op``.

    Args:
        dtype: of the call's first tensor.
        functions: leave one bare ``poolexport::`` node where one of our operators is called.
        prefix: begins the names of nodes inside Loop and If.
    """

    def __init__(self, dtype: ir.DataType, functions: bool, prefix: str) -> None:
        self.op = Body(BUILT_WITH, dtype, prefix)
        self.op.nodes = evaluator.default().nodes  # type: ignore[attr-defined]
        self.functions = functions

    def call(self, operator: Operator, *inputs: ir.Value, **attributes: Any) -> Any:
        """One of our operators; a value, or a tuple of them."""
        if self.functions:
            results = self._bare(operator, inputs, {**operator.defaults, **attributes})
        else:
            results = operator.write(self.op, inputs, attributes)
        return results[0] if len(results) == 1 else tuple(results)

    def _bare(self, operator: Operator, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]) -> list[ir.Value]:
        node = ir.Node(
            DOMAIN,
            operator.name,
            inputs,
            [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()],
            num_outputs=len(operator.outputs),
            version=VERSION,
        )
        for output, kind in zip(node.outputs, operator.outputs):
            output.type = inputs[0].type if kind is None else ir.TensorType(ir.DataType.INT64)
        self.op.nodes.append(node)
        return list(node.outputs)

    def batched(self, x: ir.Value, rank: int, write: Callable[[ir.Value], Any]) -> Any:
        """What ``write`` answers for ``x``, which may lack the axis of the batch."""
        if x.shape is None or len(x.shape) != rank + 1:
            return write(x)
        front = self.op.ints(0)
        whole = self.op.Unsqueeze(x, front)
        whole.type, whole.shape = x.type, ir.Shape([1, *x.shape])
        results = write(whole)
        if isinstance(results, tuple):
            return tuple(self.op.Squeeze(result, front) for result in results)
        return self.op.Squeeze(results, front)

    def sizes(self, values: Sequence[Size]) -> ir.Value:
        """Sizes, known or computed, as one vector of int64."""
        if all(isinstance(value, int) for value in values):
            return self.op.ints(*values)  # type: ignore[arg-type]
        known = [self.op.ints(v) if isinstance(v, int) else self.op.Reshape(v, self.op.ints(1)) for v in values]
        return known[0] if len(known) == 1 else self.op.Concat(*known, axis=0)


Write = Callable[..., Any]


def entry(
    overload: Any, write: Write, functions: bool, names: Iterator[int], opset: int | None = None
) -> Callable[..., Any]:
    """What torch's exporter calls for an aten operator: ``write(writer, **arguments)``, defaults filled in.

    Args:
        overload: the operator.
        write: writes it.
        functions: as for ``Writer``.
        names: number the calls.
        opset: that the finished graph will have, where it is known; a node that no onnxruntime has a kernel for in
            that opset is refused.
    """

    def translate(*args: Any, **kwargs: Any) -> Any:
        values = arguments(overload, args, kwargs)
        first: Any = next(value for value in values.values() if isinstance(value, ir.Value))
        writer = Writer(first.dtype, functions, f"pooling{next(names)}_")
        before = len(writer.op.nodes)
        result = write(writer, **values)
        if opset is not None:
            _require_kernels(writer.op.nodes[before:], opset)
        return result

    translate.__name__ = name_of(overload)
    return translate


def arguments(overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names, in the order of the schema, defaults filled in."""
    known = overload._schema.arguments
    values = {a.name: _own(a.default_value) for a in known if a.has_default_value()}
    values |= {**dict(zip((a.name for a in known), args)), **kwargs}
    return {a.name: values[a.name] for a in known if a.name in values} | values


def name_of(overload: Any) -> str:
    """A name for the function that translates an operator."""
    name: str = overload.name()
    return name.replace("::", "_").replace(".", "_")


def _require_kernels(nodes: Sequence[ir.Node], opset: int) -> None:
    """Refuse a node that every onnxruntime which loads the opset lacks a kernel for."""
    releases = [release for release, (newest, _) in LOADS.items() if opset <= newest]
    for node in nodes:
        dtype = next((value.dtype.name for value in node.inputs if value is not None and value.dtype is not None), "")
        if node.domain in ("", "ai.onnx") and all(missing(r, opset, node.op_type, dtype) for r in releases):
            raise ExportError(
                f"no onnxruntime has a kernel of {node.op_type} for {dtype.lower()} in opset {opset}; export in "
                "float32, or choose another opset"
            )


def _own(default: Any) -> Any:
    return list(default) if isinstance(default, (list, tuple)) else default


def counter() -> Iterator[int]:
    return itertools.count()


def fixed(values: Sequence[Size] | Size, what: str, rank: int) -> list[int]:
    """Sizes that must be known when the graph is built, one per spatial axis.

    Raises:
        ExportError: one of them follows the input.
    """
    entries: list[Any] = list(values) if isinstance(values, (list, tuple)) else [values]
    for value in entries:
        if not isinstance(value, int):
            raise ExportError(
                f"{what} is computed from the input's size, which a graph of standard operators cannot follow; use a "
                "fixed size, or an adaptive or global pooling"
            )
    return entries * rank if len(entries) == 1 else entries


def follows(size: Size, x: ir.Value, axis: int) -> bool:
    """Whether a computed size is the very length of an axis of ``x``."""
    if isinstance(size, int) or x.shape is None:
        return False
    producer = size.producer()
    node = producer.meta.get("node") if producer is not None else size.meta.get("node")
    value = node.meta.get("val") if node is not None else None
    return isinstance(value, torch.SymInt) and str(value) == str(x.shape[axis])
