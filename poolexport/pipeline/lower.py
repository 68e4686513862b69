"""Stage 3: give every ``poolexport::`` node its body of standard operators; the only stage that knows the domain."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedOpsetsPass

from poolexport.errors import ExportError
from poolexport.graph import module_path
from poolexport_ops import DOMAIN, VERSION, operators


def lower(model: ir.Model, *, portable: bool = False) -> ir.Model:
    """Attach the function bodies, or with ``portable`` write them out where they are called.

    Nodes of equal configuration share a body; further bodies of one operator are told apart by a number behind its
    name. ONNX has overload names for this, but onnxruntime before 1.27 ignores them and runs the wrong body.
    """
    bodies: dict[tuple[object, ...], ir.Function] = {}
    counts: dict[str, int] = {}
    opset = model.opset_imports[""]
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            continue
        operator = operators().get(node.op_type)
        if operator is None:
            raise ExportError(
                f"{module_path(node) or 'the model'} calls {DOMAIN}::{node.op_type}, which does not exist"
            )
        key = (
            node.op_type,
            tuple(value.dtype if value is not None else None for value in node.inputs),
            tuple((name, str(attribute.value)) for name, attribute in sorted(node.attributes.items())),
        )
        if key not in bodies:
            count = counts.get(node.op_type, 0)
            counts[node.op_type] = count + 1
            name = f"{operator.name}_{count + 1}" if count else operator.name
            inputs = [value for value in node.inputs if value is not None]
            bodies[key] = operator.function(inputs, node.attributes, opset=opset, name=name)
        node.op_type = bodies[key].name
    for function in bodies.values():
        model.functions[function.identifier()] = function
    if bodies:
        model.graph.opset_imports[DOMAIN] = VERSION
    if portable:
        InlinePass()(model)
        RemoveUnusedOpsetsPass()(model)
    return model
