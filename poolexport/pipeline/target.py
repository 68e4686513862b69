"""Stage 4c: will the graph be right on the onnxruntime that it is made for?"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from poolexport.errors import InputError
from poolexport.pipeline.export import module_path
from poolexport.pipeline.prepare import DEFAULT_OPSET, OPSETS
from poolexport.runtime.traps import LOADS, TRAPS, Release, Trap, missing, release, spell


def known(for_ort: str | None) -> Release | None:
    """The release that a user named.

    Raises:
        InputError: nothing is known about it.
    """
    return None if for_ort is None else release(for_ort)


def choose(opset: int | None, runtime: Release | None) -> int | None:
    """The opset to begin with.

    Raises:
        InputError: the runtime does not load the one that was asked for.
    """
    if runtime is None:
        return opset
    newest = LOADS[runtime][0]
    if opset is not None and opset > newest:
        raise InputError(
            f"onnxruntime {spell(runtime)} loads opsets up to {newest}, not {opset}; choose a lower opset, or leave it "
            "to for_ort"
        )
    return opset if opset is not None else min(DEFAULT_OPSET, newest)


def better(model: ir.Model, runtime: Release) -> int | None:
    """Another opset in which nothing is wrong; None where this one is fine, or none is."""
    plain = _plain(model)
    if not _faults(plain, runtime, model.opset_imports[""]):
        return None
    others = [opset for opset in OPSETS if opset <= LOADS[runtime][0] and not _faults(plain, runtime, opset)]
    return min(others, key=lambda opset: (abs(opset - DEFAULT_OPSET), -opset), default=None)


def require_runs(model: ir.Model, runtime: Release | None) -> None:
    """Raise an InputError naming every node that the runtime lacks a kernel for, or gets wrong."""
    if runtime is None:
        return
    found = faults(model, runtime)
    if found:
        raise InputError(f"this model is not right on onnxruntime {spell(runtime)}: {'; '.join(found)}")
    if (model.ir_version or 0) > LOADS[runtime][1]:
        model.ir_version = LOADS[runtime][1]


def faults(model: ir.Model, runtime: Release) -> list[str]:
    """What a release is known to lack or to get wrong in a graph, a sentence for every node."""
    return list(dict.fromkeys(_faults(_plain(model), runtime, model.opset_imports[""])))


def _plain(model: ir.Model) -> ir.Model:
    """A copy without functions, in which the types of all values are known."""
    plain = model.clone()
    InlinePass()(plain)
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(plain)
    return plain


def _faults(plain: ir.Model, runtime: Release, opset: int) -> list[str]:
    """What is wrong with a graph of that opset, a sentence for every node that is."""
    faults = []
    traps = [trap for trap in TRAPS if trap.sign and trap.concerns(runtime) and _within(trap, opset)]
    for node in plain.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            continue
        where = module_path(node) or "the model itself"
        dtype = next((value.dtype.name for value in node.inputs if value is not None and value.dtype is not None), "")
        if missing(runtime, opset, node.op_type, dtype):
            faults.append(
                f"{node.op_type} of {where} has no kernel for {dtype.lower()} in opset {opset}; "
                + ("export in float32" if dtype in ("DOUBLE", "FLOAT16") else "choose opset 21 or lower")
            )
        faults += [
            f"{node.op_type} of {where}: {trap.wrong}; {trap.advice}"
            for trap in traps
            if node.op_type in trap.operators and SIGNS[trap.sign](node)
        ]
    return faults


def _within(trap: Trap, opset: int) -> bool:
    return trap.opsets[0] <= opset <= trap.opsets[1]


def _uneven(node: ir.Node) -> bool:
    pads = node.attributes.get_ints("pads", [])
    return list(pads[: len(pads) // 2]) != list(pads[len(pads) // 2 :])


def _transposed_double(node: ir.Node) -> bool:
    return any(
        value is not None
        and value.dtype == ir.DataType.DOUBLE
        and (producer := value.producer()) is not None
        and producer.op_type == "Transpose"
        for value in node.inputs
    )


#: How a node is told to meet a fault, by the sign that the table of traps gives.
SIGNS: dict[str, Callable[[ir.Node], bool]] = {
    "ceil_mode": lambda node: bool(node.attributes.get_int("ceil_mode", 0)),
    "uneven pads": _uneven,
    "transposed float64 product": _transposed_double,
}
