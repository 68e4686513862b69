"""Stage 2: let torch turn the prepared model into a graph, then look for randomness in it."""

from __future__ import annotations

import inspect
import io
import logging
import re
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import onnx_ir as ir
import torch

from poolexport.errors import ExportError, InputError, PoolExportError, RandomnessError
from poolexport.graph import RANDOM_OPERATORS as RANDOM_OPERATORS
from poolexport.graph import is_random, module_path
from poolexport.pipeline._ports import settle_ports
from poolexport.pipeline._state import random_states_kept
from poolexport.pipeline.frozen import freezers
from poolexport.pipeline.prepare import Prepared, written
from poolexport.pipeline.randomness import kept
from poolexport.translate import decision_by_values, tracing, translation_table

#: A bound this large is none: the tracer uses it for lengths in general.
UNBOUNDED = 2**31 - 1


def export(prepared: Prepared) -> ir.Model:
    """The graph of a prepared model; pooling layers of ours are bare ``poolexport::`` nodes in it.

    Raises:
        ExportError: torch cannot export the model, or an axis cannot be dynamic.
        ValueDependentError: the model decides by the values of a tensor.
        RandomnessError: the graph holds a random operator that no policy keeps.
    """
    shapes = _dynamic_shapes(prepared)
    opset = written(prepared.opset)
    with _quiet(), random_states_kept(), torch.no_grad(), tracing(keep_randomness=True):
        try:
            program = torch.onnx.export(
                prepared.model,
                prepared.args,
                dynamic_shapes=shapes if any(prepared.axes) else None,
                input_names=prepared.input_names,
                output_names=prepared.output_names,
                opset_version=opset,
                dynamo=True,
                custom_translation_table=translation_table(functions=True, keep_randomness=True),
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            causes = _causes(error)
            if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
                raise KeyboardInterrupt from error
            refused = next((cause for cause in causes if isinstance(cause, InputError)), None)
            if refused is not None:
                raise refused from None
            decision = decision_by_values(error, _module_of(causes, prepared.model) or "the model itself")
            raise decision or ExportError(_explain(error, prepared, shapes)) from error
    assert program is not None
    model = program.model
    found = model.opset_imports.get("", 0)
    if found != opset:
        raise ExportError(
            f"torch wrote opset {found} instead of {opset}, because it cannot convert an operator of this "
            f"model; export with opset={found}"
        )
    if len(model.graph.outputs) != len(prepared.output_names):
        raise InputError(
            f"the model returns {len(model.graph.outputs)} values, of which {len(prepared.output_names)} are tensors; "
            "let its forward return tensors only, without numbers beside them"
        )
    settle_ports(model, prepared.input_names, prepared.output_names)
    names = _name_axes(model, prepared)
    assert program.exported_program is not None
    _require_unbounded(program.exported_program.range_constraints, names)
    require_no_randomness(model, kept(prepared.randomness))
    return model


def _dynamic_shapes(prepared: Prepared) -> tuple[Any, ...]:
    """Which axes are dynamic, in the shape of the forward's signature: what ``*args`` takes is a tuple of its own."""
    shapes = [dict.fromkeys(named, torch.export.Dim.DYNAMIC) or None for named in prepared.axes]
    parameters = inspect.signature(prepared.model.forward).parameters.values()
    variadic = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_POSITIONAL), len(shapes))
    return (*shapes[:variadic], tuple(shapes[variadic:])) if variadic < len(shapes) else tuple(shapes)


def require_no_randomness(model: ir.Model, allowed: Collection[str] = ()) -> None:
    """Raise a RandomnessError naming every module that left a random operator in the graph; some are ``allowed``."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    culprits = [
        f"{node.op_type} from {module_path(node) or 'the model itself'}"
        for graph in graphs
        for node in graph.all_nodes()
        if is_random(node) and module_path(node) not in allowed
    ]
    if culprits:
        raise RandomnessError(
            f"the graph draws random numbers: {', '.join(dict.fromkeys(culprits))}; "
            "put the layer in eval mode or give it a fixed inference rule"
        )


def _require_unbounded(ranges: Mapping[Any, Any], names: Mapping[str, str]) -> None:
    """Refuse an axis that the traced branch of the model serves only up to some length."""
    for symbol, allowed in ranges.items():
        name = names.get(str(symbol))
        if name is not None and str(allowed.upper) not in ("int_oo", "oo") and int(allowed.upper) < UNBOUNDED:
            raise ExportError(
                f"axis {name} is dynamic only up to a length of {allowed.upper}: the model branches on it, and a graph "
                "holds one branch; leave it out of the dynamic axes, or remove the branch"
            )


def _name_axes(model: ir.Model, prepared: Prepared) -> dict[str, str]:
    """Give the tracer's symbols the names that the user chose, and return those names by symbol."""
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
    return names


def _causes(error: BaseException) -> list[BaseException]:
    """The error and everything it was raised from, outermost first."""
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        current = current.__cause__ or current.__context__
    return causes


def _explain(error: Exception, prepared: Prepared, shapes: tuple[Any, ...]) -> str:
    """The one sentence of torch's report that a user can act on."""
    causes = _causes(error)
    refused = next((cause for cause in causes if isinstance(cause, PoolExportError)), None)
    if refused is not None:
        where = _module_of(causes, prepared.model)
        return f"{where}: {refused}" if where else str(refused)
    text = "\n".join(str(cause) for cause in causes)
    fixed = re.search(r"inferred a static shape of (\d+) for dimension \S*\['([^']+)'\]\.shape\[(\d+)\]", text)
    if fixed:
        length, name, axis = fixed.groups()
        position = _position(prepared, name)
        label = prepared.axes[position].get(int(axis), axis) if position is not None else axis
        found = freezers(prepared.model, prepared.args, shapes, prepared.axes)
        freezer = found.get((position, int(axis))) if position is not None else None
        who = f"{freezer} fixes it" if freezer else "the model, or torch's exporter, fixes it"
        remedy = freezer.remedy if freezer else "replace the layer that fixes it"
        return (
            f"axis {label} (number {axis}) of input {name!r} cannot be dynamic: {who} at its length of {length}; "
            f"{remedy}, or leave {label} out of the dynamic axes"
        )
    where = _module_of(causes, prepared.model) or "the model itself"
    missing = re.search(
        r"No ONNX function found for (?:<OpOverload\(op='([^']+)'|<(?:built-in )?function (\w+)|(\S+))", text
    )
    if missing:
        operator = next(filter(None, missing.groups()))
        return f"{where}: torch has no ONNX form for {operator}; replace the layer that calls it"
    lines = [line.strip() for line in str(causes[-1]).splitlines() if line.strip()]
    reason = re.sub(r" at 0x[0-9a-f]+", "", lines[0]) if lines else "(no message)"
    return f"{where}: torch could not export the model: {type(causes[-1]).__name__}: {reason}"


def _position(prepared: Prepared, name: str) -> int | None:
    """The number of an input, by the name that it has in the forward's signature."""
    parameters = list(inspect.signature(prepared.model.forward).parameters)
    names = list(prepared.input_names)
    return names.index(name) if name in names else parameters.index(name) if name in parameters[: len(names)] else None


def _module_of(causes: Sequence[BaseException], model: torch.nn.Module) -> str:
    """Dotted path of the module that was traced or translated when an error came up; empty where that is unknown."""
    paths = {id(module): path for path, module in model.named_modules()}
    found = ""
    for cause in causes:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            node, module = frame.f_locals.get("node"), frame.f_locals.get("self")
            if isinstance(node, torch.fx.Node) and node.meta.get("nn_module_stack"):
                found = str([*node.meta["nn_module_stack"].values()][-1][0]).removeprefix("L['self']").lstrip(".")
            elif id(module) in paths:
                found = paths[id(module)]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own chatter away from the user; what matters comes back as an error."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
