"""Reading model files without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolexport.bundle import METADATA_KEY, Manifest, model_path
from poolexport.cli import _show
from poolexport.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

#: Said again here, because the module that owns it imports torch; a test compares them.
DOMAIN = "poolexport"
#: The standard operators go by two names.
STANDARD = ("", "ai.onnx")
#: What a file is made of, by its form.
FORMS = {
    "function": "function: pooling as model-local functions made of standard operators",
    "inlined": "inlined: standard operators only",
    "plain": "plain: no functions of poolexport's in it",
}
#: What the fields of a manifest are, those that are shown.
KINDS: dict[str, type | tuple[type, ...]] = {
    "opset": int,
    "form": str,
    "layers": dict,
    "inference_rules": dict,
    "bound": str,
    "truth": str,
    "verdict": str,
    "checks": int,
    "skipped": int,
    "worst_error": (int, float, type(None)),
    "versions": dict,
    "randomness": dict,
    "random_outputs": tuple,
    "for_ort": str,
}
#: Large networks have thousands.
MOST_NODES = 1_000_000
#: What runs a node of ours that has no body.
NOTHING = "nothing: the file has no body for it"
#: What runs a standard operator that is none.
UNKNOWN = "nothing: the standard has no such operator"


def read(path: str | os.PathLike[str]) -> ir.Model:
    """The graph of a bundle or an .onnx file.

    Raises:
        InputError: there is no such file, or it is not an ONNX model.
    """
    import onnx_ir as ir

    from poolexport.graph import missing_weights, written_out

    file = model_path(path)
    try:
        model = ir.load(file)
        if not model.ir_version or not len(model.graph.outputs):
            raise ValueError("it has no graph")
        missing = missing_weights(model, file)
        if missing:
            raise InputError(f"{file}: {missing}")
        nodes = written_out(model)
        if nodes > MOST_NODES:
            raise InputError(
                f"{file} has {nodes:,} nodes once its functions are written out; at most {MOST_NODES:,} are read"
            )
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{file} is not an ONNX model: {reason}") from error
    return model


def weight_rows(file: Path) -> list[tuple[str, str]]:
    """A row for every file that holds weights of the model in ``file``."""
    from poolexport.graph import weight_files

    model = read(file)
    return [
        ("", f"{file.parent / name} ({_show.size((file.parent / name).stat().st_size)})")
        for name in weight_files(model)
    ]


def manifest(model: ir.Model, path: str | os.PathLike[str]) -> Manifest | None:
    """What the file says about itself, or None where poolexport did not write it.

    Raises:
        InputError: the manifest in it is damaged.
    """
    text = model.metadata_props.get(METADATA_KEY)
    if not text:
        return None
    try:
        found = Manifest.from_json(text)
    except (InputError, AttributeError) as error:
        reason = str(error).removeprefix("the manifest is damaged: ")
        raise InputError(f"the manifest in {model_path(path)} is damaged: {reason}") from error
    for name, kind in KINDS.items():
        value = getattr(found, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"the manifest in {model_path(path)} is damaged: {name} is {value!r}")
    for name in ("layers", "inference_rules", "randomness"):
        if not all(isinstance(entry, str) for entry in getattr(found, name).values()):
            raise InputError(f"the manifest in {model_path(path)} is damaged: {name} holds more than strings")
    return found


def form(model: ir.Model, manifest: Manifest | None) -> str:
    """How the pooling is written in the file."""
    if any(function.domain == DOMAIN for function in model.functions.values()):
        return "function"
    return "inlined" if manifest and manifest.layers and manifest.form == "inlined" else "plain"


def lengths(value: ir.Value) -> tuple[int | str, ...] | None:
    """The shape of an input or output; a name or an expression for a length that may change; None if unknown."""
    if value.shape is None or not is_tensor(value):
        return None
    return tuple(length if isinstance(length, int) else str(length.value or "?") for length in value.shape)


def is_tensor(value: ir.Value) -> bool:
    """Whether it is one tensor, and no sequence of them."""
    import onnx_ir as ir

    return value.type is None or isinstance(value.type, ir.TensorType)


@dataclass(frozen=True)
class Operator:
    """Nodes of one kind and one configuration.

    Args:
        domain, name, attributes: what they are.
        inside: the model-local function they are in; empty for the graph itself.
        body: whether the file brings a function body for them.
        known: whether the standard has them, for operators of the standard.
        random: whether they draw random numbers.
        count: how many there are.
    """

    domain: str
    name: str
    attributes: tuple[tuple[str, Any], ...]
    inside: str
    body: bool
    known: bool
    random: bool
    count: int = 1

    @property
    def kind(self) -> str:
        return f"{self.domain}::{self.name}" if self.domain else self.name

    @property
    def runs(self) -> str:
        """What computes it here."""
        from poolexport.runtime.kernels import kernel_operators, stem

        if self.body:
            native = self.domain == DOMAIN and stem(self.name) in kernel_operators()
            return "native kernel" if native else "function (standard kernels)"
        if self.domain == DOMAIN:
            return NOTHING
        if not self.known:
            return UNKNOWN
        return f"a kernel of {self.domain}" if self.domain else "standard kernel"


def operators(model: ir.Model) -> list[Operator]:
    """Every pooling operator and every random one that can run, in order of appearance, equal ones counted together."""
    from poolexport.graph import is_random

    counts: dict[Operator, int] = {}
    for node, inside in _nodes(model):
        standard = node.domain in STANDARD
        pooling = node.domain == DOMAIN or "pool" in node.op_type.lower() or node.op_type == "RoiAlign"
        body = node.op_identifier() in model.functions
        random = standard and not body and is_random(node)
        if pooling or random:
            attributes = tuple((name, _value(value)) for name, value in node.attributes.items())
            known = not standard or _is_standard(node.op_type, model.opset_imports.get("", 1))
            found = Operator("" if standard else node.domain, node.op_type, attributes, inside, body, known, random)
            counts[found] = counts.get(found, 0) + 1
    return [replace(operator, count=count) for operator, count in counts.items()]


def _is_standard(name: str, opset: int) -> bool:
    import onnx.defs

    # a newer opset than this onnx knows counts as the newest that it does
    return bool(onnx.defs.has(name) and onnx.defs.has(name, max_inclusive_version=opset))


def _nodes(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    """The nodes of the graph, then of every function that is called, from wherever."""
    called: set[ir.OperatorIdentifier] = set()
    waiting: list[tuple[ir.Graph | ir.Function, str]] = [(model.graph, "")]
    for graph, inside in waiting:
        for node in graph.all_nodes():
            yield node, inside
            function = model.functions.get(node.op_identifier())
            if function is not None and node.op_identifier() not in called:
                called.add(node.op_identifier())
                waiting.append((function, f"{function.domain}::{function.name}"))


def _value(attribute: ir.Attr) -> Any:
    if attribute.ref_attr_name:
        return f"@{attribute.ref_attr_name}"
    value = attribute.value
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return value if isinstance(value, (int, float, str)) else str(value)


def edited(folder: Path, model: ir.Model) -> tuple[list[str], str]:
    """The files of a bundle that differ from its manifest.json, and why that could not be told, if it could not."""
    from poolexport.bundle import MANIFEST, MODEL, sha256

    file = folder / MANIFEST
    if not file.is_file():
        return [], f"there is no {MANIFEST} to compare with"
    try:
        facts = json.loads(file.read_text())
        digests = dict(facts.pop("sha256"))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return [MANIFEST], f"{MANIFEST} is damaged ({type(error).__name__})"
    # the model has the same facts inside, where its digest protects them
    faithful = MODEL in digests and facts == _inner(model)
    changed = [
        name for name, digest in digests.items() if not (folder / name).is_file() or sha256(folder / name) != digest
    ]
    return ([] if faithful else [MANIFEST]) + changed, ""


def edited_weights(file: Path, model: ir.Model) -> list[str]:
    """The files of weights beside a single model file that are not those it was written with."""
    from poolexport.bundle import WEIGHTS_KEY, sha256

    try:
        facts = dict(json.loads(model.metadata_props.get(WEIGHTS_KEY, "{}")))
        return [name for name, fact in facts.items() if sha256(file.parent / name) != fact["sha256"]]
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return [file.name]


def _inner(model: ir.Model) -> Any:
    try:
        return json.loads(model.metadata_props.get(METADATA_KEY, ""))
    except ValueError:
        return None
