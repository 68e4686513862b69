"""Stage 2: let torch turn the prepared model into a graph, then look for randomness in it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch

from poolexport.errors import ExportError, RandomnessError
from poolexport.pipeline._state import random_states_kept
from poolexport.pipeline.prepare import Prepared

RANDOM_OPERATORS = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
SCOPES = "pkg.torch.onnx.name_scopes"


def export(prepared: Prepared) -> ir.Model:
    """The graph of a prepared model; pooling layers of ours are bare ``poolexport::`` nodes in it.

    Raises:
        ExportError: torch cannot export the model, or an axis cannot be dynamic.
        RandomnessError: the graph holds a random operator.
    """
    shapes = tuple(dict.fromkeys(named, torch.export.Dim.DYNAMIC) or None for named in prepared.axes)
    with _quiet(), random_states_kept(), torch.no_grad():
        try:
            program = torch.onnx.export(
                prepared.model,
                prepared.args,
                dynamic_shapes=shapes if any(prepared.axes) else None,
                input_names=prepared.input_names,
                output_names=prepared.output_names,
                opset_version=prepared.opset,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(_explain(error, prepared)) from error
    assert program is not None
    model = program.model
    found = model.opset_imports.get("", 0)
    if found != prepared.opset:
        raise ExportError(
            f"torch wrote opset {found} instead of {prepared.opset}, because it cannot convert an operator of this "
            f"model; export with opset={found}"
        )
    _name_axes(model, prepared)
    require_no_randomness(model)
    return model


def require_no_randomness(model: ir.Model) -> None:
    """Raise a RandomnessError naming every module that left a random operator in the graph."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    culprits = [
        f"{node.op_type} from {module_path(node) or 'the model itself'}"
        for graph in graphs
        for node in graph.all_nodes()
        if node.op_type in RANDOM_OPERATORS or _random_dropout(node)
    ]
    if culprits:
        raise RandomnessError(
            f"the graph draws random numbers: {', '.join(dict.fromkeys(culprits))}; "
            "put the layer in eval mode or give it a fixed inference rule"
        )


def module_path(node: ir.Node) -> str:
    """Dotted path of the module that a node comes from; empty for the model itself."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPES, ""))
    return scopes[-2] if len(scopes) > 1 else ""


def _random_dropout(node: ir.Node) -> bool:
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = ir.convenience.get_const_tensor(node.inputs[2])
    return training is None or bool(training.numpy())


def _name_axes(model: ir.Model, prepared: Prepared) -> None:
    """Give the tracer's symbols the names that the user chose."""
    names: dict[str, str] = {}
    for value, named in zip(model.graph.inputs, prepared.axes):
        for axis, name in named.items():
            dim = value.shape[axis] if value.shape is not None else None
            symbol = getattr(dim, "value", None)
            if not isinstance(symbol, str):
                raise ExportError(f"axis {axis} ({name}) of input {value.name!r} came out fixed at length {dim}")
            if names.setdefault(symbol, name) != name:
                raise ExportError(f"the model makes {name} equal to {names[symbol]}; give both axes the same name")
    pattern = re.compile(r"[A-Za-z_]\w*")
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        values = [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]
        for value in values:
            if value.shape is not None:
                value.shape = ir.Shape(
                    [
                        dim
                        if isinstance(dim, int)
                        else pattern.sub(lambda m: names.get(m[0], m[0]), dim.value)
                        if dim.value is not None
                        else None
                        for dim in value.shape
                    ]
                )


def _explain(error: Exception, prepared: Prepared) -> str:
    """The one sentence of torch's report that a user can act on."""
    causes = [error]
    while causes[-1].__cause__ is not None or causes[-1].__context__ is not None:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)  # type: ignore[arg-type]
    text = "\n".join(str(cause) for cause in causes)
    constant = re.search(r"L\['(?:args|x|\w+)'\][^\n]*?was inferred to be a constant \((\d+)\)", text)
    if constant or "specialized" in text or "Constraints violated" in text:
        axes = sorted({name for named in prepared.axes for name in named.values()})
        detail = next((line.strip(" -") for line in text.splitlines() if "constant" in line or "specializ" in line), "")
        return f"an axis of {axes} cannot be dynamic, because the model fixes its length: {detail}"
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
    if missing:
        return f"torch has no ONNX form for {missing[1]}; replace the layer that calls it"
    lines = [line.strip() for line in str(causes[-1]).splitlines() if line.strip()]
    return f"torch could not export the model: {type(causes[-1]).__name__}: {lines[0] if lines else '(no message)'}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own chatter away from the user; what matters comes back as an error."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
