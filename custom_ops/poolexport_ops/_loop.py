"""Loop as a Python function that writes one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from poolexport_ops._body import Body

State = Sequence[ir.Value]
#: Of a step: whether to go on, the next state, and what is collected.
Step = tuple[ir.Value, State, State]


def as_double(op: Body) -> Body:
    """The same body, for nodes that compute in float64."""
    wide = Body(op.opset, ir.DataType.DOUBLE)
    wide.nodes = op.nodes
    return wide


def loop(
    op: Body, count: ir.Value, state: State, dtypes: Sequence[ir.DataType], step: Callable[[Body, State], Step]
) -> tuple[list[ir.Value], list[ir.Value]]:
    """At most ``count`` steps on a state.

    Args:
        op: where to write.
        count: the largest number of steps, one int64.
        state: what the first step is given.
        dtypes: of the state.
        step: writes one step into a body of its own; it may read values of ``op``.

    Returns:
        The last state, and what the steps collected, each stacked along a new first axis.
    """
    inner = Body(op.opset, op.dtype)
    place = len(op.nodes)
    formal = [
        ir.Value(name=f"loop{place}_{name}", type=ir.TensorType(dtype), shape=shape)
        for name, dtype, shape in (
            ("step", ir.DataType.INT64, ir.Shape([])),
            ("going", ir.DataType.BOOL, ir.Shape([])),
            *((f"state{i}", dtype, None) for i, dtype in enumerate(dtypes)),
        )
    ]
    going, following, collected = step(inner, formal[2:])
    for node in inner.nodes:
        node.name = f"loop{place}_{node.name}"
        for value in node.outputs:
            value.name = f"loop{place}_{value.name}"
    graph = ir.Graph(formal, [going, *following, *collected], nodes=inner.nodes, name=f"loop{place}")
    outputs = len(following) + len(collected)
    values = op.Loop(count, None, *state, body=graph, outputs=outputs)
    values = [values] if outputs == 1 else list(values)
    return values[: len(following)], values[len(following) :]
