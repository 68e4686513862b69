"""``poolexport export``: from a model in a Python file to a proven ONNX file."""

from __future__ import annotations

from dataclasses import asdict
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from poolexport.cli import _graph, _inputs, _model, _progress, _show
from poolexport.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from poolexport.adoption.adopting import Adopted
    from poolexport.bundle import Bundle, Manifest


#: What --external-data takes beside numbers, in Python's words.
EXTERNAL: dict[str, Any] = {"always": True, "never": False, "auto": "auto"}


@click.command()
@_model.argument
@_model.weights_option
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="[NAME=]SHAPE",
    help="Shape, as in 1x3x32x32; once per input.",
)
@click.option("--dtype", type=click.Choice(["float32", "float16", "float64"]), default="float32", show_default=True)
@click.option(
    "--dynamic", metavar="AXES", help="Axes that may change, as in N,H,W; the letters are N,C,L, N,C,H,W or N,C,D,H,W."
)
@click.option("--opset", type=int, metavar="N", help="Version of the standard operators, 17 to 28; 20 by default.")
@click.option(
    "--for-ort",
    metavar="VERSION",
    help="The onnxruntime that will run the file, as in 1.22; what it gets wrong or lacks is refused.",
)
@click.option("--portable", is_flag=True, help="Standard operators only, for runtimes without model-local functions.")
@click.option("--adopt", is_flag=True, help="First replace pooling layers of torch and other packages by ours.")
@click.option(
    "--choice",
    "choices",
    multiple=True,
    metavar="LAYER=MEANING",
    help="With --adopt: what a layer, named by its path or class, means; keep leaves it alone.",
)
@click.option(
    "--randomness",
    multiple=True,
    metavar="PATH=POLICY",
    help="What becomes of a layer that draws: expectation, fixed(7) or keep; PATH may be a pattern. Once per layer.",
)
@click.option(
    "--external-data",
    metavar="WHEN",
    default="auto",
    show_default=True,
    help="Weights in a file beside the model: always, never, above so many bytes, or where one file cannot hold them.",
)
@click.option("--name", metavar="NAME", help="Name of the graph.")
@click.option("--producer", metavar="NAME", help="Who made the file; poolexport by default.")
@click.option(
    "--keep-sources", is_flag=True, help="Keep torch's notes on source files, which hold paths of this machine."
)
@click.option("--no-verify", is_flag=True, help="Write the file without comparing it; it says UNVERIFIED.")
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@click.option(
    "-o",
    "--out",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Folder to create, or a single file where it ends in .onnx; by default a folder named after FACTORY.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def export(
    factory: str,
    weights: Path | None,
    inputs: tuple[str, ...],
    dtype: str,
    dynamic: str | None,
    opset: int | None,
    for_ort: str | None,
    portable: bool,
    adopt: bool,
    choices: tuple[str, ...],
    randomness: tuple[str, ...],
    external_data: str,
    name: str | None,
    producer: str | None,
    keep_sources: bool,
    no_verify: bool,
    force: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Export a model to ONNX and prove that the numbers are the same.

    MODULE is an importable module or a .py file. FACTORY is a torch.nn.Module in it, or a callable without arguments
    that returns one. The model is put into eval mode; what it draws from torch's, numpy's and Python's generators when
    it is made is the same at every call.

    With several inputs, each --input may have the NAME of the argument of forward that it is for; other names are
    given to the inputs in the file, in order.

    \b
    Example:
      poolexport export net.py:build --weights net.safetensors --input 1x3x32x32 --dynamic N,H,W
    """
    shapes = _inputs.parse(inputs)
    chosen = _chosen(adopt, choices)
    apart = EXTERNAL.get(external_data) if not external_data.isdecimal() else int(external_data)
    if apart is None:
        raise InputError(f"--external-data {external_data}: write always, never, auto, or a number of bytes")
    with _progress.progress() as progress:
        import torch

        from poolexport import api
        from poolexport.pipeline.package import require_free

        target = out if out is not None else Path(_model.split(factory)[1].rpartition(".")[2])
        require_free(target, force=force)
        loaded = _model.load(factory, weights, getattr(torch, dtype))
        model, adopted = loaded.model, None
        shapes = _inputs.in_order(shapes, model)
        examples = _inputs.draw(shapes, [getattr(torch, dtype)] * len(shapes))
        if adopt:
            from poolexport.adoption import adopting

            adopted = adopting.adopt(model, chosen, args=examples)
            model = adopted.model
        bundle = api.export(
            model,
            examples,
            target,
            dynamic_shapes=_inputs.dynamic(dynamic, shapes),
            opset=opset,
            for_ort=for_ort,
            portable=portable,
            external_data=apart,
            name=name,
            producer=producer,
            keep_sources=keep_sources,
            input_names=[given.name for given in shapes] if shapes[0].name else None,
            randomness=policies(randomness),
            verify=not no_verify,
            force=force,
            progress=progress,
        )
    manifest = bundle.manifest
    rules = pooling(model, manifest)
    if as_json:
        layers = [{"path": path, "layer": layer, "inference": rule} for path, layer, rule in rules]
        facts = {"path": str(bundle.path), "model": str(bundle.model), "weights": loaded.weights, "pooling": layers}
        if adopted is not None:
            facts |= {"adopted": list(map(asdict, adopted.replacements)), "kept": list(map(asdict, adopted.kept))}
        _show.document({**facts, "verdict": manifest.verdict, "manifest": asdict(manifest)})
        return
    _show.out(_show.facts([*summary(bundle, loaded.weights, rules), *told(adopted)]))
    feed = ", ".join(
        f"{port.name!r}: {port.name if port.name.isidentifier() and not iskeyword(port.name) else f'x{position}'}"
        for position, port in enumerate(manifest.inputs)
    )
    _show.out("", f"run it in Python: poolexport.session({str(bundle.path)!r}).run(None, {{{feed}}})")


def _chosen(adopt: bool, choices: tuple[str, ...]) -> dict[str, str]:
    """What --choice says, by path or class."""
    if choices and not adopt:
        raise click.UsageError("--choice says what an adopted layer means; it needs --adopt")
    pairs = [choice.rpartition("=") for choice in choices]
    for (key, _, meaning), choice in zip(pairs, choices):
        if not key or not meaning:
            raise click.UsageError(f"--choice {choice!r} is not LAYER=MEANING, as in SoftPool2d=per_channel")
    return {key: meaning for key, _, meaning in pairs}


def told(adopted: Adopted | None) -> list[tuple[str, RenderableType]]:
    """Which layers were replaced, by what, and how that is known, in rows."""
    if adopted is None:
        return []
    changed = [
        f"{record.path or '(the model itself)'}  {record.found.rpartition('.')[2]} is {record.ours.partition('(')[0]}: "
        f"{record.meaning} ({record.proof})"
        for record in adopted.replacements
    ]
    left = [
        f"{record.path or '(the model itself)'}  {record.found.rpartition('.')[2]}: {record.reason}"
        for record in adopted.kept
    ]
    rows = [("adopted", changed or ["no layer"]), ("kept", left)]
    return [("" if position else label, line) for label, lines in rows for position, line in enumerate(lines)]


def policies(words: tuple[str, ...]) -> dict[str, str]:
    """What was said about layers that draw.

    Raises:
        InputError: a word is no path and policy.
    """
    found = {}
    for word in words:
        path, sign, policy = word.rpartition("=")
        if not sign:
            raise InputError(f"--randomness {word!r} names no policy; write PATH=POLICY, as in 'head.drop=fixed(7)'")
        found[path] = policy
    return found


def pooling(model: nn.Module, manifest: Manifest) -> list[tuple[str, str, str]]:
    """Every pooling layer, ours and torch's: its dotted path, its class, and the rule it follows in the file."""
    from poolexport.catalog import method_of

    found = []
    for path, module in model.named_modules():
        method = method_of(module)
        shown = path or "(the model itself)"
        if method is not None:
            found.append((shown, type(module).__name__, manifest.inference_rules.get(shown, method.inference)))
        elif type(module).__module__ == "torch.nn.modules.pooling":
            found.append((shown, f"nn.{type(module).__name__}", "torch's own"))
    return found


def summary(bundle: Bundle, weights: str, rules: list[tuple[str, str, str]]) -> list[tuple[str, RenderableType]]:
    """What was written, in rows."""
    manifest = bundle.manifest
    axes = dict.fromkeys(length for port in manifest.inputs for length in port.shape if isinstance(length, str))
    rows: list[tuple[str, RenderableType]] = [
        ("file", f"{bundle.model} ({_show.size(bundle.model.stat().st_size)})"),
        *_graph.weight_rows(bundle.model),
        ("weights", weights),
        ("opset", str(manifest.opset) + (f", for onnxruntime {manifest.for_ort}" if manifest.for_ort else "")),
        ("form", _graph.FORMS[_graph.form(_graph.read(bundle.model), manifest)]),
    ]
    for label, ports in (("input", manifest.inputs), ("output", manifest.outputs)):
        rows += [(label, f"{port.name}  {_show.dtype(port.dtype)}  {_show.shape(port.shape)}") for port in ports]
    rows.append(("dynamic axes", ", ".join(axes) or "none"))
    for position, (path, layer, rule) in enumerate(rules):
        rows.append(("" if position else "pooling", f"{path}  {layer}: {rule}"))
    if not rules:
        rows.append(("pooling", "no pooling layer"))
    for position, (path, policy) in enumerate(manifest.randomness.items()):
        rows.append(("" if position else "randomness", f"{path}: {policy}"))
    if manifest.checks:
        rows.append(("checks", f"{manifest.checks}, worst relative error {_show.number(manifest.worst_error)}"))
    rows.append(("verdict", _show.word(manifest.verdict)))
    if manifest.random_outputs:
        names = _show.listed(manifest.random_outputs)
        rows.append(("", f"not compared, because they are random: {names}; only their shapes and types were"))
    return rows
