"""Keeping a graph's inputs and outputs apart, each under the name it was promised."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def settle_ports(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """Give every input and output its name, and every output a value of its own.

    A model that returns its input, or one tensor twice, leaves one value in two roles, which can only have one name.
    """
    graph = model.graph
    taken = list(graph.inputs)
    for position, value in enumerate(graph.outputs):
        if any(value is other for other in taken):
            node = ir.node("Identity", [value])
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.append(node)
            graph.outputs[position] = node.outputs[0]
        taken.append(graph.outputs[position])
    # Twice, because a name may still be held by a value that is about to get another one.
    for names in ([f"port {i}" for i in range(len(taken))], [*inputs, *outputs]):
        for value, name in zip(taken, names, strict=True):
            value.name = name
    return model
