"""``poolexport inspect``: what is in a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType
from rich.text import Text

from poolexport.cli import _graph, _show
from poolexport.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from poolexport.bundle import Manifest


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(path: Path, as_json: bool) -> None:
    """Show what is in a file: inputs, pooling, what will run where.

    PATH is a bundle or any .onnx file.

    \b
    Example:
      poolexport inspect build
    """
    model = _graph.read(path)
    manifest, damage = None, ""
    try:
        manifest = _graph.manifest(model, path)
    except InputError as error:
        # everything but the manifest can still be told
        damage = str(error)
    found = facts(path, model, manifest, damage)
    if as_json:
        _show.document(found)
        return
    _show.out(_show.facts(rows(found)))
    if found["layers"]:
        layers = [
            (layer["path"], layer["method"], layer["inference"] or "not random in training")
            for layer in found["layers"]
        ]
        _show.out("", _show.table(("pooling layer", "method", "inference rule"), layers))
    if found["operators"]:
        headers = ("operator", "attributes", "in", "count", "runs as")
        _show.out("", _show.table(headers, [operator_row(o) for o in found["operators"]], right=("count",)))
    else:
        _show.out("", "no pooling operator in the graph")


def facts(path: Path, model: ir.Model, manifest: Manifest | None, damage: str = "") -> dict[str, Any]:
    """Everything that is known about a file."""
    from poolexport.bundle import model_path
    from poolexport.graph import weight_files

    file = model_path(path)
    operators = _graph.operators(model)
    layers = manifest.layers if manifest else {}
    rules = manifest.inference_rules if manifest else {}
    if path.is_dir():
        changed, untold = _graph.edited(path, model)
    else:
        changed, untold = _graph.edited_weights(file, model), "a single file carries no checksum"
    return {
        "path": str(path),
        "model": str(file),
        "bytes": file.stat().st_size,
        "weights": {name: (file.parent / name).stat().st_size for name in weight_files(model)},
        "ir_version": model.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "form": _graph.form(model, manifest),
        "inputs": [port(value) for value in model.graph.inputs],
        "outputs": [port(value) for value in model.graph.outputs],
        "layers": [{"path": at, "method": method, "inference": rules.get(at)} for at, method in layers.items()],
        "operators": [
            {
                "operator": o.kind,
                "attributes": dict(o.attributes),
                "in": o.inside or None,
                "count": o.count,
                "runs": o.runs,
                "random": o.random,
            }
            for o in operators
        ],
        "random": [o.kind for o in operators if o.random],
        "intact": False if changed else None if untold else True,
        "changed": changed,
        "unchecked": untold or None,
        "damage": damage or None,
        "randomness": manifest.randomness if manifest else {},
        "verdict": manifest.verdict if manifest else None,
        "manifest": asdict(manifest) if manifest else None,
    }


def port(value: ir.Value) -> dict[str, Any]:
    """An input or output: name, type, shape."""
    dtype = _show.dtype(str(value.dtype)) if value.dtype is not None else "unknown type"
    if not _graph.is_tensor(value):
        dtype = f"{type(value.type).__name__.removesuffix('Type').lower()} of {dtype}"
    return {"name": value.name, "dtype": dtype, "shape": _graph.lengths(value)}


def rows(found: dict[str, Any]) -> list[tuple[str, RenderableType]]:
    """The facts that fit on a line each."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in found["opsets"].items())
    result: list[tuple[str, RenderableType]] = [
        ("file", f"{found['model']} ({_show.size(found['bytes'])})"),
        *(("", f"{name} ({_show.size(size)}), its weights") for name, size in found["weights"].items()),
        ("made by", found["producer"] or "unknown"),
        ("opset", f"{opsets} (IR version {found['ir_version']})"),
        ("form", _graph.FORMS[found["form"]]),
    ]
    for label in ("inputs", "outputs"):
        result += [(label[:-1], f"{p['name']}  {p['dtype']}  {_show.shape(p['shape'])}") for p in found[label]]
    manifest = found["manifest"]
    if found["damage"]:
        result.append(("verdict", Text(f"unknown: {found['damage']}", style="bold red")))
    elif manifest is None:
        result.append(("verdict", "unknown: poolexport did not write this file"))
    else:
        told = f" ({manifest['checks']} checks, worst relative error {_show.number(manifest['worst_error'])})"
        result.append(("verdict", _show.word(manifest["verdict"]).append(told if manifest["checks"] else "", style="")))
        if manifest["random_outputs"]:
            names = _show.listed(manifest["random_outputs"])
            result.append(("", f"not compared, because they are random: {names}; only their shapes and types were"))
        policies = manifest["randomness"].items()
        result += [("" if n else "randomness", f"{path}: {policy}") for n, (path, policy) in enumerate(policies)]
    if found["intact"] is False:
        edits = f"NO: {_show.listed(found['changed'])} changed after the export, so the verdict does not hold"
        result.append(("as exported", Text(edits, style="bold red")))
    else:
        result.append(("as exported", "yes" if found["intact"] else f"unknown: {found['unchecked']}"))
    if found["random"]:
        drawn = f"{_show.listed(found['random'])}: the answer differs from run to run"
        result.append(("random", Text(drawn, style="bold red")))
    return result


def operator_row(operator: dict[str, Any]) -> tuple[RenderableType, ...]:
    """An operator as a line of the table."""
    attributes = " ".join(attribute(*pair) for pair in operator["attributes"].items() if not is_default(*pair))
    name = Text(operator["operator"], style="bold red" if operator["random"] else "")
    runs = Text(operator["runs"], style="bold red" if operator["runs"] in (_graph.NOTHING, _graph.UNKNOWN) else "")
    return (name, attributes, operator["in"] or "graph", str(operator["count"]), runs)


def attribute(name: str, value: Any) -> str:
    """``kernel_shape=2x2``."""
    return f"{name}={'x'.join(map(str, value)) if isinstance(value, tuple) else value}"


def is_default(name: str, value: Any) -> bool:
    """Whether an attribute says nothing that a reader would not assume."""
    lengths = {"pads": {0}, "dilations": {1}}.get(name)
    if lengths is not None and isinstance(value, tuple):
        return set(value) == lengths
    return (name, value) in {("auto_pad", "NOTSET"), ("ceil_mode", 0), ("storage_order", 0), ("count_include_pad", 0)}
