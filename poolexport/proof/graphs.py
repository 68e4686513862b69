"""A file as nodes and values: which module a node is from, and what lies between two sets of values.

The call of a function is one node, and so is an If or a Loop.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from poolexport.bundle import model_path
from poolexport.graph import SCOPES, module_path
from poolexport.proof.prints import Print
from poolexport.runtime import Source

#: What is added to the names of values that are cut: the true value goes in under this name.
TRUE = "//true"
#: Numbers that are printed of every value, each by an operator of ONNX.
PRINTED = ("ReduceMin", "ReduceMax", "ReduceMean", "ReduceL1")


@dataclass(frozen=True)
class Node:
    """One node of the graph.

    Args:
        name: the node's, or that of its first output where it has none.
        operator: with its domain, unless that is the standard one.
        path: dotted path of the module that it is from; None where the file does not say.
        group: nodes that stand for one operator of torch share it; None where the file does not say.
        inputs: values that it takes, those its subgraphs take from outside among them.
        outputs: values that it makes.
    """

    name: str
    operator: str
    path: str | None
    group: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Graph:
    """The top level of a file.

    Args:
        source: a bundle, an .onnx file, or its bytes.
        paths: dotted paths of the modules of the model; a node's may be another name of a module that is shared.
    """

    def __init__(self, source: Source, paths: Mapping[str, str]) -> None:
        self._source = source
        model = self._load()
        if any(value.dtype is None for node in model.graph for value in node.outputs):
            # Types that the file does not tell, as files of other tools may not.
            model = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model).model
        self.inputs = [str(value.name) for value in model.graph.inputs]
        self.outputs = [str(value.name) for value in model.graph.outputs]
        self.nodes = [_node(node, paths) for node in model.graph]
        self.maker = {name: position for position, node in enumerate(self.nodes) for name in node.outputs}
        self.takers: dict[str, list[int]] = defaultdict(list)
        for position, node in enumerate(self.nodes):
            for name in node.inputs:
                self.takers[name].append(position)
        sequences = {
            value.name for node in model.graph for value in node.outputs if "Sequence" in node.op_type or _odd(value)
        }
        #: numpy's names of the types of values, where the file tells them.
        self.types = {
            str(value.name): value.dtype.numpy().name
            for node in model.graph
            for value in node.outputs
            if value.dtype is not None and value.dtype != ir.DataType.STRING
        }
        reached = set(self.inputs)
        self.values: list[str] = []
        for node in self.nodes:
            if not reached.isdisjoint(node.inputs):
                reached.update(node.outputs)
                self.values += [name for name in node.outputs if name not in sequences]

    def between(self, targets: Collection[str], cuts: Collection[str]) -> tuple[list[int], set[str]]:
        """Numbers of the nodes that make values out of ``cuts`` (and inputs), and those of the cuts that it takes."""
        inside: set[int] = set()
        border: set[str] = set()
        todo = [self.maker[name] for name in targets if name in self.maker]
        while todo:
            position = todo.pop()
            if position in inside:
                continue
            inside.add(position)
            for name in self.nodes[position].inputs:
                if name in cuts or name in self.inputs:
                    border.add(name)
                elif name in self.maker:
                    todo.append(self.maker[name])
        return sorted(inside), border

    def node_of(self, name: str) -> Node:
        """The node that makes a value."""
        return self.nodes[self.maker[name]]

    def leaves(self, name: str) -> bool:
        """Whether a value is more than a step on the way to what one operator of torch makes."""
        group = self.node_of(name).group
        return (
            group is None
            or name in self.outputs
            or any(self.nodes[taker].group != group for taker in self.takers.get(name, ()))
        )

    def part(
        self, targets: Sequence[str], cuts: Collection[str], inner: Sequence[str], types: Mapping[str, np.dtype]
    ) -> bytes:
        """A model of what makes ``targets``, in which true values stand in for cuts; with the prints of other values.

        A cut goes in under its name and ``TRUE``, inputs under their own; ``inner`` values are printed (``prints_of``).
        ``types`` are those of the true values.
        """
        positions, border = self.between([*targets, *inner], cuts)
        model = self._load()
        graph = model.graph
        nodes = list(graph)
        values = {str(value.name): value for node in nodes for value in node.outputs if value.name}
        graph.outputs.clear()
        kept = set(positions)
        truths = []
        for name in sorted(border.intersection(values)):
            value = values[name]
            truth = ir.Value(name=name + TRUE, type=ir.TensorType(ir.DataType.from_numpy(types[name])))
            value.replace_all_uses_with(truth)
            truths.append(truth)
        graph.remove([node for position, node in reversed(list(enumerate(nodes))) if position not in kept])
        taken = {str(value.name): value for value in graph.inputs}
        graph.inputs.clear()
        graph.inputs.extend([*(taken[name] for name in self.inputs if name in border), *truths])
        for name in [name for name, value in graph.initializers.items() if not value.uses()]:
            del graph.initializers[name]
        graph.outputs.extend(values[name] for name in targets)
        for name in inner:
            _print(graph, values[name])
        return ir.to_proto(model).SerializeToString()

    def _load(self) -> ir.Model:
        return ir.external_data.load_to_model(load(self._source))


def load(source: Source) -> ir.Model:
    """The graph of a bundle, an .onnx file or its bytes; weights beside the file stay there."""
    if isinstance(source, bytes):
        return ir.from_proto(onnx.load_from_string(source))
    return ir.load(model_path(source))


def prints_of(name: str) -> list[str]:
    """The outputs that ``part`` gives an inner value: those of PRINTED, then its shape."""
    return [f"{name}//{each}" for each in (*PRINTED, "Shape")]


def read_print(numbers: Sequence[np.ndarray], dtype: str) -> Print:
    """The print that these outputs are."""
    lowest, highest, mean, magnitude = (float(x) for x in numbers[:-1])
    shape = tuple(int(n) for n in numbers[-1])
    return Print(shape, dtype, lowest, highest, mean, magnitude / max(1, int(np.prod(shape))))


def _print(graph: ir.Graph, value: ir.Value) -> None:
    names = prints_of(str(value.name))
    single = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
    graph.append(single)
    for operator, name in zip(PRINTED, names):
        node = ir.node(operator, [single.outputs[0]], {"keepdims": 0})
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    node = ir.node("Shape", [value])
    node.outputs[0].name, node.outputs[0].type = names[-1], ir.TensorType(ir.DataType.INT64)
    graph.append(node)
    graph.outputs.append(node.outputs[0])


def _odd(value: ir.Value) -> bool:
    return value.type is not None and not isinstance(value.type, ir.TensorType)


def _node(node: ir.Node, paths: Mapping[str, str]) -> Node:
    scopes = node.metadata_props.get(SCOPES)
    path = module_path(node) if scopes is not None else _path_in(node.name or "", paths)
    if path is not None:
        path = paths.get(re.sub(r"@\d+", "", path), path)
    inputs = [str(value.name) for value in node.inputs if value is not None]
    inputs += [str(value.name) for value in _captured(node)]
    outputs = tuple(str(value.name) for value in node.outputs if value.name)
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return Node(node.name or outputs[0], operator, path, scopes, tuple(dict.fromkeys(inputs)), outputs)


def _path_in(name: str, paths: Mapping[str, str]) -> str | None:
    """The module in a name such as ``/layer1/layer1.0/conv1/Conv``, which torch's older exporter gave.

    Parts of it are whole paths or the last name of one, and calls after the first have a number.
    """
    path = ""
    for part in name.split("/")[1:-1]:
        for spelled in (part, re.sub(r"_\d+$", "", part)):
            deeper = [each for each in (spelled, f"{path}.{spelled}") if each in paths]
            if deeper:
                path = deeper[-1]
                break
    return path or None


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """The values from outside that the subgraphs of a node take."""
    for attribute in node.attributes.values():
        graphs = [attribute.value] if attribute.type == ir.AttributeType.GRAPH else []
        graphs += attribute.value if attribute.type == ir.AttributeType.GRAPHS else []
        for graph in graphs:
            for inner in graph.all_nodes():
                yield from (value for value in inner.inputs if value is not None and value.graph is node.graph)
            yield from (value for value in graph.outputs if value.graph is node.graph)
