"""Loop and If of ONNX, whose inner graphs are written by Python functions.

An inner graph may use values of the one around it; its own names begin with a prefix that is in no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from poolexport_ops._body import Body

State = Sequence[ir.Value]
#: Of a step: whether to go on, the next state, and what is collected.
Step = tuple[ir.Value, State, State]


def loop(
    op: Body,
    count: ir.Value,
    state: State,
    dtypes: Sequence[ir.DataType],
    step: Callable[[Body, ir.Value, State], Step],
    begin: ir.Value | None = None,
) -> tuple[list[ir.Value], list[ir.Value]]:
    """At most ``count`` steps on a state.

    Args:
        op: where to write.
        count: the largest number of steps, one int64.
        state: what the first step is given.
        dtypes: of the state.
        step: writes one step into a body of its own; it is given that, the number of the step, and the state.
        begin: whether to begin, a bool without axes.

    Returns:
        The last state, and what the steps collected, each stacked along a new first axis.
    """
    inner = op.inside("step")
    number, going, *formal = (
        ir.Value(name=f"{inner.prefix}{name}", type=ir.TensorType(dtype), shape=shape)
        for name, dtype, shape in (
            ("number", ir.DataType.INT64, ir.Shape([])),
            ("going", ir.DataType.BOOL, ir.Shape([])),
            *((f"state{i}", dtype, None) for i, dtype in enumerate(dtypes)),
        )
    )
    go_on, following, collected = step(inner, number, formal)
    outputs = [go_on, *following, *collected]
    graph = ir.Graph([number, going, *formal], outputs, nodes=inner.nodes, name=f"{inner.prefix}body")
    if begin is None and not state:
        begin = op.constant(np.array(True))  # an input left out at the end is not counted, and a Loop needs two
    values = op.Loop(count, begin, *state, body=graph, outputs=len(outputs) - 1)
    values = [values] if len(outputs) == 2 else list(values)
    return values[: len(following)], values[len(following) :]


def each(op: Body, count: ir.Value, write: Callable[[Body, ir.Value], ir.Value]) -> ir.Value:
    """What ``write(body, number)`` answers for 0 ... count - 1, one after the other, along a new first axis.

    Only one answer's values are in memory at a time. Without any the other axes have no known lengths.
    """

    def step(inner: Body, number: ir.Value, _: State) -> Step:
        return inner.constant(np.array(True)), [], [write(inner, number)]

    return loop(op, count, [], [], step)[1][0]


def when(
    op: Body, condition: ir.Value, write: Callable[[Body], ir.Value], otherwise: Callable[[Body], ir.Value]
) -> ir.Value:
    """What ``write(body)`` answers where the condition, a scalar, is true, else ``otherwise(body)``; one is run."""
    branches = {}
    for name, content in {"then_branch": write, "else_branch": otherwise}.items():
        inner = op.inside(name)
        answer = content(inner)
        branches[name] = ir.Graph([], [answer], nodes=inner.nodes, name=f"{inner.prefix}body")
    return op.If(condition, **branches)
