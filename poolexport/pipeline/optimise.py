"""Stage 4: passes that change how the graph is written, not what it computes."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from poolexport.pipeline._ports import settle_ports


class ReduceOneAxisAtATime(ir.passes.InPlacePass):
    """Replace a sum or mean over several axes by one per axis, the last axis first.

    onnxruntime adds up several axes in one long float32 row, which loses digits; axis by axis the rows are short, and
    the mean of equally many means is the same mean.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for node in list(model.graph.all_nodes()):
            axes = _constant_axes(node)
            if len(axes) > 1:
                self._split(node, sorted(axes, reverse=True))
                changed = True
        return ir.passes.PassResult(model, changed)

    def _split(self, node: ir.Node, axes: list[int]) -> None:
        keep = node.attributes.get_int("keepdims", 1)
        value, output = node.inputs[0], node.outputs[0]
        assert value is not None
        new = []
        for axis in axes:
            constant = ir.node("Constant", [], {"value": ir.tensor([axis], ir.DataType.INT64)})
            step = ir.node(node.op_type, [value, constant.outputs[0]], {"keepdims": keep}, version=node.version)
            step.metadata_props.update(node.metadata_props)
            constant.outputs[0].type = ir.TensorType(ir.DataType.INT64)
            value = step.outputs[0]
            value.type = output.type
            new += [constant, step]
        value.shape = output.shape
        assert node.graph is not None
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], new, [output], [value])


def _constant_axes(node: ir.Node) -> list[int]:
    """The axes of a sum or mean, counted from the front, where they are known; else none."""
    if node.op_type not in ("ReduceMean", "ReduceSum") or len(node.inputs) < 2:
        return []
    value, axes = node.inputs
    if axes is not None and (producer := axes.producer()) is not None and producer.op_type == "Reshape":
        axes = producer.inputs[0]  # torch writes the axes as a reshaped constant
    constant = None if axes is None else ir.convenience.get_const_tensor(axes)
    if constant is None or value is None or value.shape is None:
        return []
    return [int(axis) % len(value.shape) for axis in constant.numpy().ravel()]


#: In this order. None of them folds constants or drops a term: a small epsilon stays where the model put it.
PASSES = (
    ReduceOneAxisAtATime(),
    LiftConstantsToInitializersPass(),
    DeduplicateInitializersPass(),
    CommonSubexpressionEliminationPass(),
    IdentityEliminationPass(),
    RemoveUnusedNodesPass(),
    RemoveUnusedFunctionsPass(),
    RemoveUnusedOpsetsPass(),
    NameFixPass(),
)

#: What torch writes about the source code; it holds paths of the machine that exported the model.
PRIVATE = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")


def optimise(model: ir.Model) -> ir.Model:
    """The same computation, tidier, and without source paths."""
    names = [[value.name or "" for value in ports] for ports in (model.graph.inputs, model.graph.outputs)]
    model = settle_ports(Sequential(*PASSES)(model).model, *names)
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        graph.doc_string = None
        for node in graph.all_nodes():
            for key in PRIVATE:
                node.metadata_props.pop(key, None)
    return model
