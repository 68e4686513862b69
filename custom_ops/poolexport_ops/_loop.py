"""Loop of ONNX, for iterations whose number depends on the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from poolexport_ops._body import Body

Step = Callable[..., tuple[ir.Value, Sequence[ir.Value]]]


def loop_while(op: Body, condition: ir.Value, states: Sequence[ir.Value], step: Step, most: int) -> list[ir.Value]:
    """The states after as many steps as the condition asks for.

    The inner graph sees nothing but its own states and constants: values of the surrounding graph would have to be
    renamed wherever a body is inlined.

    Args:
        op: writes the surrounding body.
        condition: whether to begin, a bool without axes.
        states: what every step changes; their shapes stay the same.
        step: ``(body, *states) -> (whether to go on, new states)``, written once into the inner graph.
        most: steps after which to stop in any case.
    """
    inner = Body(op.opset, op.dtype)
    count, going = (
        ir.Value(name=f"loop_{name}", type=ir.TensorType(dtype), shape=ir.Shape([]))
        for name, dtype in (("count", ir.DataType.INT64), ("going", ir.DataType.BOOL))
    )
    formal = [ir.Value(name=f"loop_state_{i}", type=ir.TensorType(op.dtype)) for i in range(len(states))]
    go_on, results = step(inner, *formal)
    for node in inner.nodes:
        node.name = f"loop_{node.name}"
        for output in node.outputs:
            output.name = f"loop_{output.name}"
    graph = ir.Graph([count, going, *formal], [go_on, *results], nodes=inner.nodes, name="loop")
    limit = op.constant(np.array(most))
    found = op.Loop(limit, condition, *states, outputs=len(states), body=graph)
    return [found] if len(states) == 1 else list(found)
