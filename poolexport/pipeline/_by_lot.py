"""A file that rounds every step another way at every run: Monte Carlo arithmetic on a graph.

What a node of the graph computes in float32 is moved by about one unit in the last place, by lot. What is exact stays:
whole numbers are not moved, which may be indices, and nodes that only choose or move values are left alone.

Source: D. S. Parker, Monte Carlo Arithmetic, UCLA CSD-970002, 1997.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

#: Operators whose answers are rounded.
ROUNDING = """
    Acos Add Asin Atan Attention AveragePool BatchNormalization Conv ConvTranspose Cos Cosh CumSum Det Div Einsum
    Elu Erf Exp Gelu Gemm GlobalAveragePool GlobalLpPool GridSample GroupNormalization GRU HardSigmoid HardSwish
    InstanceNormalization LayerNormalization Log LogSoftmax LpNormalization LpPool LRN LSTM MatMul Mean Mish Mul Pow
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare Resize
    RMSNormalization RNN RoiAlign Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Sub Sum Swish Tan Tanh
"""
UNIT = float(np.finfo(np.float32).eps)


def by_lot(model: ir.Model, seed: int) -> ir.Model:
    """The model with every answer of ``ROUNDING`` moved by lot; functions are written out first.

    Args:
        model: is changed.
        seed: the same one gives the same answers, run by run.
    """
    InlinePass()(model)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
    graph = model.graph
    outputs = list(graph.outputs)
    for number, node in enumerate(list(graph)):
        if node.op_type not in ROUNDING.split() or node.domain not in ("", "ai.onnx"):
            continue
        for value in node.outputs:
            # a name is needed by whoever asks for an output of the graph
            if value.dtype == ir.DataType.FLOAT and value not in outputs:
                _move(graph, node, value, seed + number)
    return model


def _move(graph: ir.Graph, node: ir.Node, value: ir.Value, seed: int) -> None:
    """Let those who take a value take one that is moved, unless it is whole."""
    users = list(value.uses())
    lot = ir.node("RandomUniformLike", [value], {"low": 1 - UNIT, "high": 1 + UNIT, "seed": float(seed)})
    moved = ir.node("Mul", [value, lot.outputs[0]])
    floor = ir.node("Floor", [value])
    whole = ir.node("Equal", [value, floor.outputs[0]])
    chosen = ir.node("Where", [whole.outputs[0], value, moved.outputs[0]])
    graph.insert_after(node, [lot, moved, floor, whole, chosen])
    for user, position in users:
        user.replace_input_with(position, chosen.outputs[0])
