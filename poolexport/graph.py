"""Facts about operators that graphs are judged by; no torch in here, because files are read without it."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
RANDOM_OPERATORS = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


def is_random(node: ir.Node) -> bool:
    """Whether a node of the standard operators draws random numbers, or might."""
    return node.op_type in RANDOM_OPERATORS or _training_dropout(node)


def module_path(node: ir.Node) -> str:
    """Dotted path of the module that a node comes from; empty for the model itself."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPES, ""))
    # torch puts nodes that belong to no module into a scope of its own, with a leading underscore.
    return scopes[-2] if len(scopes) > 1 and not scopes[-2].startswith("_") else ""


def random_outputs(model: ir.Model) -> list[str]:
    """The outputs of a graph that depend on a random operator."""
    # Functions come in an order in which some may be called before they are seen.
    drawing: set[ir.OperatorIdentifier] = set()
    for _ in model.functions:
        drawing |= {
            name
            for name, function in model.functions.items()
            if any(is_random(node) or node.op_identifier() in drawing for node in function.graph.all_nodes())
        }
    reached: set[ir.Value] = set()
    for node in model.graph:
        inside = [inner for graph in _subgraphs(node) for inner in graph.all_nodes()]
        taken = [value for each in (node, *inside) for value in each.inputs]
        draws = any(is_random(each) or each.op_identifier() in drawing for each in (node, *inside))
        if draws or not reached.isdisjoint(value for value in taken if value is not None):
            reached.update(node.outputs)
    return [str(value.name) for value in model.graph.outputs if value in reached]


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    graphs = [attribute.value for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]
    lists = [attribute.value for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPHS]
    return [*graphs, *(graph for several in lists for graph in several)]


def weight_files(model: ir.Model) -> dict[str, int]:
    """The files beside a model that hold its weights, by the name in it, and how many bytes it takes each to have."""
    files: dict[str, int] = {}
    tensors = [value.const_value for value in model.graph.initializers.values()]
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            tensors += [a.value for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR]
    for tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor):
            name = str(tensor.location)
            end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
            files[name] = max(files.get(name, 0), end)
    return files


def files_beside(model: ir.Model, file: Path) -> list[Path]:
    """Those of the files of weights of the model in ``file`` that are there, in its folder."""
    folder = file.absolute().parent.resolve()
    beside = [(folder / name).resolve() for name in weight_files(model)]
    return [data for data in beside if data.is_file() and data.is_relative_to(folder)]


def missing_weights(model: ir.Model, file: Path) -> str:
    """What is wrong with the files of weights of the model in ``file``; empty where they are all there."""
    folder = file.absolute().parent.resolve()
    for name, size in weight_files(model).items():
        data = (folder / name).resolve()
        if not data.is_relative_to(folder):
            return f"its weights are said to be in {name}, outside of its folder, where they are not read"
        if not data.is_file():
            return f"its weights are in {name}, which is missing; keep both files in one folder, under their names"
        found = data.stat().st_size
        if found < size:
            return f"its weights are in {name}, which has {found} bytes of {size}; copy it anew"
    return ""


def _training_dropout(node: ir.Node) -> bool:
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = ir.convenience.get_const_tensor(node.inputs[2])
    return training is None or bool(training.numpy())


def written_out(model: ir.Model) -> int:
    """Nodes that a model has once its functions are written out where they are called.

    Functions that call others twice double it at every step, and onnxruntime writes them out before it runs anything.

    Raises:
        ValueError: a function calls itself.
    """
    found: dict[ir.OperatorIdentifier, int] = {}

    def nodes(graph: ir.Graph | ir.Function, callers: tuple[ir.OperatorIdentifier, ...]) -> int:
        return sum(node_count(node, callers) for node in graph)

    def node_count(node: ir.Node, callers: tuple[ir.OperatorIdentifier, ...]) -> int:
        inner = sum(nodes(graph, callers) for graph in _subgraphs(node))
        name = node.op_identifier()
        if name not in model.functions:
            return 1 + inner
        if name in callers:
            raise ValueError(f"the function {name[0]}::{name[1]} calls itself")
        if name not in found:
            found[name] = nodes(model.functions[name], (*callers, name))
        return found[name] + inner

    return nodes(model.graph, ())
