"""Stage 4b: from the opset that torch writes to the one that was asked for, where torch does not write that one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx.defs
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from poolexport.errors import ExportError
from poolexport.pipeline.export import module_path
from poolexport.pipeline.optimise import feeds_pooling

#: Operators that a later version only extends to further data types: the node stays as it is.
SAME = {
    24: {
        *("Cast", "CastLike", "Constant", "ConstantOfShape", "Flatten", "Identity", "If", "Loop", "Pad", "Reshape"),
        *("Scan", "Shape", "Size", "Squeeze", "TopK", "Transpose", "Unsqueeze"),
    },
    25: {
        *("Cast", "CastLike", "Constant", "ConstantOfShape", "Flatten", "Identity", "If", "Loop", "Pad", "Reshape"),
        *("Scan", "Shape", "Size", "Squeeze", "Transpose", "Unsqueeze"),
    },
    26: set(),
    27: {"Range"},
    28: {"Cast", "Celu", "Compress", "DepthToSpace", "Einsum", "OneHot"},
}
#: Types in which Range counts differently from opset 27 on.
HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
STANDARD = ("", "ai.onnx")


def convert(model: ir.Model, opset: int) -> ir.Model:
    """The same computation in ``opset``, function bodies included.

    Raises:
        ExportError: an operator means something else there, or does not exist, and there is no way to write it.
    """
    current = model.opset_imports[""]
    if opset == current:
        return model
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        for node in list(graph.all_nodes()):
            if node.domain not in STANDARD or node.op_identifier() in model.functions:
                continue
            if opset < current:
                _lower(node, current, opset)
            else:
                _raise(node, current, opset)
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if "" in imports:
            imports[""] = opset
    RemoveUnusedNodesPass()(model)
    return model


def _raise(node: ir.Node, current: int, opset: int) -> None:
    known = onnx.defs.onnx_opset_version()
    if opset > known:
        raise ExportError(
            f"the installed onnx knows opsets up to {known}; install a newer onnx, or choose a lower opset"
        )
    for version in range(current + 1, opset + 1):
        changed = onnx.defs.has(node.op_type, version) and (
            onnx.defs.get_schema(node.op_type, version).since_version == version
        )
        half = any(value is not None and value.dtype in HALF for value in node.inputs)
        if changed and (node.op_type not in SAME.get(version, ()) or (node.op_type == "Range" and half)):
            raise _unwritable(node, opset, f"opset {version} changes what it means; export with opset={version - 1}")


def _lower(node: ir.Node, current: int, opset: int) -> None:
    name = node.op_type
    newer = onnx.defs.get_schema(name, current)
    if newer.since_version <= opset:
        return
    if not onnx.defs.has(name, opset):
        raise _unwritable(node, opset, f"it exists from opset {_first(name)} on")
    if name not in RULES:
        raise _unwritable(node, opset, f"opset {newer.since_version} changed what it means")
    RULES[name](node, opset)
    known = onnx.defs.get_schema(name, opset).attributes
    for attribute in [a for a in node.attributes.values() if a.name not in known]:
        default = newer.attributes[attribute.name].default_value
        usual = ir.serde.deserialize_attribute(default).value if default.name else None
        if attribute.ref_attr_name or attribute.value != usual:
            raise _unwritable(node, opset, f"it has no {attribute.name} there")
        node.attributes.pop(attribute.name)


def _reduction(node: ir.Node, opset: int) -> None:
    """Axes were an attribute."""
    keeps_all = node.attributes.get_int("noop_with_empty_axes", 0)
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None:
        if keeps_all:
            raise _unwritable(node, opset, "it reduces no axis")
        return
    values = _constant(axes)
    if values is None:
        raise _unwritable(node, opset, "its axes are computed in the graph")
    if not values.size:
        raise _unwritable(node, opset, "it names no axis")
    node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)
    node.attributes.add(ir.AttrInt64s("axes", [int(axis) for axis in values]))


def _pad(node: ir.Node, opset: int) -> None:
    """Pads were given for every axis."""
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    if axes is None:
        return
    x, pads = node.inputs[0], node.inputs[1]
    which = _constant(axes)
    amounts = _constant(pads)
    if x is None or x.shape is None or which is None or amounts is None:
        raise _unwritable(node, opset, "its axes or pads are computed in the graph")
    rank = len(x.shape)
    whole = np.zeros((2, rank), np.int64)
    whole[:, which] = amounts.reshape(2, -1)
    assert node.graph is not None
    constant = ir.node("Constant", [], {"value": ir.tensor(whole.reshape(-1))})
    node.graph.insert_before(node, constant)
    node.resize_inputs(3)
    node.replace_input_with(1, constant.outputs[0])
    if feeds_pooling(node):
        # What opset 18 keeps apart by the axes of Pad: a join of one part, which no runtime removes.
        output = node.outputs[0]
        uses = list(output.uses())
        join = ir.node("Concat", [output], {"axis": 0})
        join.outputs[0].type, join.outputs[0].shape = output.type, output.shape
        node.graph.insert_after(node, join)
        for consumer, position in uses:
            consumer.replace_input_with(position, join.outputs[0])


def _split(node: ir.Node, opset: int) -> None:
    """The number of parts was the number of outputs, and they had to be equal."""
    parts = node.attributes.get_int("num_outputs", 0)
    if parts:
        x, axis = node.inputs[0], node.attributes.get_int("axis", 0)
        length = x.shape[axis] if x is not None and x.shape is not None else None
        if not isinstance(length, int) or length % parts:
            raise _unwritable(node, opset, f"its {parts} parts are not known to be equal")
        node.attributes.pop("num_outputs")


def _scatter(node: ir.Node, opset: int) -> None:
    if node.attributes.get_string("reduction", "none") in ("max", "min"):
        raise _unwritable(node, opset, "it takes no max or min there")


def _attributes_only(node: ir.Node, opset: int) -> None:
    """Nothing but attributes came with the newer version."""


#: How to write an operator of opset 18 in opset 17, where its version differs.
RULES: dict[str, Callable[[ir.Node, int], None]] = {
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
            *("ReduceProd", "ReduceSumSquare"),
        ),
        _reduction,
    ),
    "Pad": _pad,
    "Split": _split,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Resize": _attributes_only,
    "LpPool": _attributes_only,
}


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a list of axes or pads, where the graph holds them, if only in another shape or type."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor.numpy().reshape(-1)
    node = value.producer()
    if node is None or node.domain not in STANDARD:
        return None
    if node.op_type in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
        return _constant(node.inputs[0])
    parts = [_constant(part) for part in node.inputs] if node.op_type == "Concat" else [None]
    return None if any(part is None for part in parts) else np.concatenate(parts)  # type: ignore[arg-type]


def _first(name: str) -> int:
    return min(
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == name and not schema.domain
    )


def _unwritable(node: ir.Node, opset: int, reason: str) -> ExportError:
    where = module_path(node) or "the model itself"
    return ExportError(f"{node.op_type} of {where} cannot be written in opset {opset}: {reason}")
