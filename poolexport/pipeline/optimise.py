"""Stage 4: passes that change how the graph is written, not what it computes."""

from __future__ import annotations

import numpy as np
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
    ShapeInferencePass,
)

from poolexport.graph import is_random
from poolexport.pipeline._ports import settle_ports
from poolexport_ops._body import Body

#: Reductions that add up a row of numbers.
SUMS = {"ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare"}


class SumInDouble(ir.passes.InPlacePass):
    """Make every float32 sum in float64, and round it once.

    onnxruntime adds up a float32 row one cell after the other: a mean over a plane of ordinary size loses a digit.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for node in list(model.graph.all_nodes()):
            types = [value.dtype for value in (*node.inputs[:1], *node.outputs) if value is not None]
            if node.op_type in SUMS and not node.domain and ir.DataType.FLOAT in types:
                self._widen(node)
                changed = True
        return ir.passes.PassResult(model, changed)

    def _widen(self, node: ir.Node) -> None:
        value, output = node.inputs[0], node.outputs[0]
        assert node.graph is not None
        wide = ir.node("Cast", [value], {"to": int(ir.DataType.DOUBLE)})
        total = ir.Node("", node.op_type, [wide.outputs[0], *node.inputs[1:]], node.attributes.values())
        narrow = ir.node("Cast", [total.outputs[0]], {"to": int(ir.DataType.FLOAT)})
        for new in (wide, total, narrow):
            new.metadata_props.update(node.metadata_props)
        narrow.outputs[0].type, narrow.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), output.shape
        new_nodes = [wide, total, narrow]
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], new_nodes, [output], [narrow.outputs[0]])


class AxesFromTheFront(ir.passes.InPlacePass):
    """Count the axes of reductions from the front: onnxruntime does not reduce axis -1 of an empty batch."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for node in list(model.graph.all_nodes()):
            x, axes = (node.inputs[0], node.inputs[1]) if _reduces(node) else (None, None)
            while (
                axes is not None and (source := axes.producer()) and source.op_type in ("Cast", "Identity", "Reshape")
            ):
                axes = source.inputs[0]
            tensor = ir.convenience.get_const_tensor(axes) if axes is not None else None
            if x is None or x.shape is None or tensor is None or not (tensor.numpy() < 0).any():
                continue
            constant = ir.node("Constant", [], {"value": ir.tensor(tensor.numpy().reshape(-1) % len(x.shape))})
            assert node.graph is not None
            node.graph.insert_before(node, constant)
            node.replace_input_with(1, constant.outputs[0])
            changed = True
        return ir.passes.PassResult(model, changed)


def _reduces(node: ir.Node) -> bool:
    return node.op_type.startswith("Reduce") and not node.domain and len(node.inputs) > 1


class NormaliseByDouble(ir.passes.InPlacePass):
    """Write InstanceNormalization (GroupNorm is one too) with float64 statistics.

    Its one float32 sum per plane is divided by the deviation of that plane: on nearly constant planes every lost digit
    is magnified three hundred times.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for node in list(model.graph.all_nodes()):
            x = node.inputs[0] if node.op_type == "InstanceNormalization" and not node.domain else None
            if x is not None and x.dtype == ir.DataType.FLOAT and x.shape is not None:
                self._write(node, x, len(x.shape))
                changed = True
        return ir.passes.PassResult(model, changed)

    def _write(self, node: ir.Node, x: ir.Value, rank: int) -> None:
        assert node.graph is not None
        op, double, single = Body(0, ir.DataType.FLOAT), ir.DataType.DOUBLE, ir.DataType.FLOAT
        axes = op.ints(*range(2, rank))
        shape = op.ints(1, -1, *[1] * (rank - 2))
        scale, bias = (op.Reshape(value, shape) for value in node.inputs[1:3])
        wide = op.cast(x, double)
        centred = op.Sub(wide, op.ReduceMean(wide, axes, keepdims=1))
        variance = op.ReduceMean(op.Mul(centred, centred), axes, keepdims=1)
        epsilon = op.constant(np.array(node.attributes.get_float("epsilon", 1e-5), np.float64))
        normal = op.cast(op.Div(centred, op.Sqrt(op.Add(variance, epsilon))), single)
        y = op.Add(op.Mul(normal, scale), bias)
        output = node.outputs[0]
        y.type, y.shape = ir.TensorType(single), output.shape
        for position, new in enumerate(op.nodes):
            new.metadata_props.update(node.metadata_props)
            new.name = f"{node.name}_{position}"
            for value in new.outputs:
                value.name = None
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], op.nodes, [output], [y])


class CastByType(ir.passes.InPlacePass):
    """Write CastLike as Cast where the type is known: onnxruntime has no kernel for it, and says so on the terminal."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for node in model.graph.all_nodes():
            like = node.inputs[1] if node.op_type == "CastLike" and not node.domain else None
            if like is not None and like.dtype is not None:
                node.op_type = "Cast"
                node.resize_inputs(1)
                node.attributes.add(ir.AttrInt64("to", int(like.dtype)))
                changed = True
        return ir.passes.PassResult(model, changed)


class PadByAxes(ir.passes.InPlacePass):
    """Let a Pad that comes before a pooling name all its axes.

    onnxruntime makes a border of zeros part of the pooling that follows, where it counts as -inf under MaxPool and not
    at all under AveragePool; it leaves a Pad alone that names its axes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for node in list(model.graph.all_nodes()):
            x = node.inputs[0] if node.op_type == "Pad" and not node.domain else None
            named = len(node.inputs) > 3 and node.inputs[3] is not None
            if x is None or x.shape is None or named or not feeds_pooling(node):
                continue
            axes = ir.node("Constant", [], {"value": ir.tensor(np.arange(len(x.shape)))})
            assert node.graph is not None
            node.graph.insert_before(node, axes)
            node.resize_inputs(4)
            node.replace_input_with(3, axes.outputs[0])
            changed = True
        return ir.passes.PassResult(model, changed)


def feeds_pooling(node: ir.Node) -> bool:
    """Whether a pooling takes a node's output, through nothing or through nodes that a runtime removes."""
    for consumer, _ in node.outputs[0].uses():
        if consumer.op_type in ("MaxPool", "AveragePool"):
            return True
        if consumer.op_type in ("Cast", "Dropout", "Identity") and feeds_pooling(consumer):
            return True
    return False


class SequencesByType(ir.passes.InPlacePass):
    """Say of a split that it gives a sequence: inference of shapes says a tensor, which onnxruntime refuses."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for node in model.graph.all_nodes():
            value = node.outputs[0] if node.op_type == "SplitToSequence" and not node.domain else None
            if value is not None and isinstance(value.type, ir.TensorType):
                value.type, value.shape = ir.SequenceType(value.type), None
                changed = True
        return ir.passes.PassResult(model, changed)


#: In this order. None of them folds constants or drops a term: a small epsilon stays where the model put it.
PASSES = (
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False),
    SequencesByType(),
    CastByType(),
    AxesFromTheFront(),
    NormaliseByDouble(),
    SumInDouble(),
    PadByAxes(),
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


def optimise(model: ir.Model, *, keep_sources: bool = False) -> ir.Model:
    """The same computation, tidier, and without source paths unless ``keep_sources`` says so."""
    names = [[value.name or "" for value in ports] for ports in (model.graph.inputs, model.graph.outputs)]
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    passes: tuple[ir.passes.InPlacePass, ...] = PASSES
    if any(is_random(node) for graph in graphs for node in graph.all_nodes()):
        # Two draws of one distribution are no common subexpression, but are taken for one.
        passes = tuple(each for each in PASSES if not isinstance(each, CommonSubexpressionEliminationPass))
    model = settle_ports(Sequential(*passes)(model).model, *names)
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        graph.doc_string = None
        for node in graph.all_nodes():
            for key in () if keep_sources else PRIVATE:
                node.metadata_props.pop(key, None)
    return model
