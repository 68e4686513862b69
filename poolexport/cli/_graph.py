"""Reading model files without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolexport.bundle import METADATA_KEY, Manifest, model_path
from poolexport.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

#: Said again here, because the modules that own these facts import torch; a test compares them.
DOMAIN = "poolexport"
RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
#: What runs a node of ours that has no body.
NOTHING = "nothing: the file has no body for it"


def read(path: str | os.PathLike[str]) -> ir.Model:
    """The graph of a bundle or an .onnx file.

    Raises:
        InputError: there is no such file, or it is not an ONNX model.
    """
    import onnx_ir as ir

    file = model_path(path)
    try:
        model = ir.load(file)
        if not model.ir_version or not len(model.graph.outputs):
            raise ValueError("it has no graph")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{file} is not an ONNX model: {reason}") from error
    return model


def manifest(model: ir.Model) -> Manifest | None:
    """What the file says about itself, or None where poolexport did not write it.

    Raises:
        InputError: the manifest in it is damaged.
    """
    text = model.metadata_props.get(METADATA_KEY)
    return Manifest.from_json(text) if text else None


def lengths(value: ir.Value) -> tuple[int | str, ...]:
    """The shape of an input or output; a name or an expression for a length that may change."""
    return tuple(length if isinstance(length, int) else str(length.value or "?") for length in value.shape or ())


@dataclass(frozen=True)
class Operator:
    """Nodes of one kind and one configuration.

    Args:
        domain, name, attributes: what they are.
        inside: the model-local function they are in; empty for the graph itself.
        body: whether the file brings a function body for them.
        random: whether they draw random numbers.
        count: how many there are.
    """

    domain: str
    name: str
    attributes: tuple[tuple[str, Any], ...]
    inside: str
    body: bool
    random: bool
    count: int = 1

    @property
    def kind(self) -> str:
        return f"{self.domain}::{self.name}" if self.domain else self.name

    @property
    def runs(self) -> str:
        """What computes it."""
        if self.body:
            return "function (standard kernels)"
        if self.domain == DOMAIN:
            return NOTHING
        return f"a kernel of {self.domain}" if self.domain else "standard kernel"


def operators(model: ir.Model) -> list[Operator]:
    """Every pooling operator and every random one, in order of appearance, equal ones counted together."""
    counts: dict[Operator, int] = {}
    for node, inside in _nodes(model):
        pooling = node.domain == DOMAIN or "pool" in node.op_type.lower() or node.op_type == "RoiAlign"
        random = not node.domain and (node.op_type in RANDOM or _training_dropout(node))
        if pooling or random:
            attributes = tuple((name, _value(value)) for name, value in node.attributes.items())
            body = node.op_identifier() in model.functions
            found = Operator(node.domain, node.op_type, attributes, inside, body, random)
            counts[found] = counts.get(found, 0) + 1
    return [Operator(o.domain, o.name, o.attributes, o.inside, o.body, o.random, count) for o, count in counts.items()]


def _nodes(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    for node in model.graph.all_nodes():
        yield node, ""
    for function in model.functions.values():
        for node in function.all_nodes():
            yield node, f"{function.domain}::{function.name}"


def _training_dropout(node: ir.Node) -> bool:
    """Whether a Dropout is switched on, or might be."""
    import onnx_ir as ir

    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = ir.convenience.get_const_tensor(node.inputs[2])
    return training is None or bool(training.numpy())


def _value(attribute: ir.Attr) -> Any:
    if attribute.ref_attr_name:
        return f"@{attribute.ref_attr_name}"
    value = attribute.value
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return value if isinstance(value, (int, float, str)) else str(value)


def edited(folder: Path) -> tuple[list[str], str]:
    """The files of a bundle that differ from its manifest.json, and why that could not be told, if it could not."""
    import json

    from poolexport.bundle import MANIFEST, sha256

    file = folder / MANIFEST
    if not file.is_file():
        return [], f"there is no {MANIFEST} to compare with"
    try:
        digests = dict(json.loads(file.read_text())["sha256"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        return [MANIFEST], f"{MANIFEST} is damaged ({type(error).__name__})"
    return [
        name for name, digest in digests.items() if not (folder / name).is_file() or sha256(folder / name) != digest
    ], ""
