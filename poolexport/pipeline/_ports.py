"""Keeping a graph's inputs and outputs apart, each under the name it was promised."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

import onnx_ir as ir


def settle_ports(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """Give every input and output its name, and every output a value of its own.

    A model that returns its input, or one tensor twice, leaves one value in two roles, which can only have one name.
    Any other value that holds one of the names, as a weight or the answer of a layer may, gets another.
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
    _rename_others(graph, taken)
    return model


def _rename_others(graph: ir.Graph, ports: Collection[ir.Value]) -> None:
    """Give a name of its own to every value that has the name of a port and is none."""
    others = [value for value in _values(graph) if not any(value is port for port in ports)]
    promised = {value.name for value in ports}
    held = promised | {value.name for value in others}
    for value in others:
        if value.name in promised:
            value.name = next(name for n in itertools.count(1) if (name := f"{value.name}_{n}") not in held)
            held.add(value.name)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for part in (graph, *graph.subgraphs()):
        yield from part.inputs
        yield from list(part.initializers.values())
        for node in part:
            yield from node.outputs
