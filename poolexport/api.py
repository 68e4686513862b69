"""The public calls, each a walk through the pipeline."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from poolexport.bundle import METADATA_KEY, Bundle, Manifest, model_path
from poolexport.errors import FrozenAxisError, InputError, ParityError
from poolexport.graph import missing_weights
from poolexport.pipeline import convert as convert_stage
from poolexport.pipeline import export as export_stage
from poolexport.pipeline import inline as inline_stage
from poolexport.pipeline import lower as lower_stage
from poolexport.pipeline import optimise as optimise_stage
from poolexport.pipeline import package as package_stage
from poolexport.pipeline import prepare as prepare_stage
from poolexport.pipeline import target as target_stage
from poolexport.pipeline import verify as verify_stage
from poolexport.pipeline import weights as weights_stage
from poolexport.pipeline._file_standard import matched
from poolexport.pipeline.audit import audit
from poolexport.pipeline.inline import Inlined
from poolexport.pipeline.prepare import DynamicShapes, Prepared
from poolexport.pipeline.randomness import Policies
from poolexport.pipeline.verify import Given, Progress, Verdict, Watch
from poolexport.pipeline.weights import ExternalData
from poolexport.proof.declared import require_epsilons
from poolexport.proof.failing import Failing
from poolexport.proof.locate import locate
from poolexport.runtime import Source, Way
from poolexport.tolerance import FACTOR

__all__ = ["audit", "export", "inline", "read_manifest", "verify"]


def export(
    model: nn.Module,
    args: Tensor | Sequence[Tensor],
    path: str | os.PathLike[str],
    *,
    dynamic_shapes: DynamicShapes = None,
    opset: int | None = None,
    for_ort: str | None = None,
    portable: bool = False,
    external_data: ExternalData = "auto",
    name: str | None = None,
    producer: str | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    randomness: Policies | None = None,
    keep_sources: bool = False,
    verify: bool = True,
    factor: float = FACTOR,
    rtol: float | None = None,
    atol: float | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export a trained model to ONNX, prove that the numbers are the same, and write it to disk.

    Args:
        model: in eval mode; neither it nor any random state is changed.
        args: one example input, or a sequence of them, on the CPU.
        path: a folder to create, or a single file where it ends in ``.onnx``.
        dynamic_shapes: names of the axes that may change, ``{0: "N", 2: "H", 3: "W"}`` for a model of one input, or
            any form ``torch.onnx.export`` takes.
        opset: version of the standard operators, 17 to 28; 20 by default.
        for_ort: the onnxruntime that will run the file, as in ``"1.22"``. An opset that it loads is chosen, and what it
            is known to get wrong or to lack is refused; the numbers are proven on the onnxruntime that is installed.
        portable: write standard operators only, for runtimes that do not know model-local functions.
        external_data: weights go into a file beside the model: always (True), never (False), above so many bytes, or
            where they would not fit into the model file ("auto").
        name: of the graph; torch's by default.
        producer: who made the file; poolexport by default.
        keep_sources: keep torch's notes on source files and lines, which hold paths of this machine.
        input_names, output_names: names in the file; those of ``forward`` and ``output`` by default.
        randomness: what becomes of layers that draw, by dotted path or by a pattern such as ``"*.drop"``:
            "expectation" (the fixed rule of eval mode), "fixed(7)" (drawn once, with seed 7) or "keep" (the file draws
            at every run; what depends on it is not compared, and the file says UNVERIFIED). Without a policy, a draw
            is an error.
        verify: switched off, the file says UNVERIFIED.
        factor: how many times farther from the float64 truth than torch the file may be.
        rtol, atol: replace that rule by ``error <= atol + rtol * scale``.
        force: replace what an earlier export left at ``path``.
        progress: called with (stage, done, total).

    Returns:
        The bundle: its path, its .onnx file and its manifest.

    Raises:
        InputError: something given cannot be used, with what to do about it.
        ExportError: torch cannot turn the model into a graph.
        ParityError: the answers differ; no file is left behind. The message names the first layer to blame.

    Example:
        >>> import tempfile, torch, poolexport
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), poolexport.nn.SoftPool2d(2)).eval()
        >>> folder = tempfile.mkdtemp()
        >>> bundle = poolexport.export(
        ...     model, torch.randn(1, 3, 32, 32), f"{folder}/net", dynamic_shapes={0: "N", 2: "H", 3: "W"}
        ... )
        >>> bundle.manifest.verdict
        'PASS'
    """
    report = progress or (lambda *_: None)
    target = Path(path)
    package_stage.require_free(target, force=force)
    weights_stage.require_choice(external_data)
    for label, given in (("name", name), ("producer", producer)):
        if given is not None and not isinstance(given, str):
            raise InputError(f"{label} must be a string, got {given!r}")
    runtime = target_stage.known(for_ort)
    unasked = opset is None
    opset = target_stage.choose(opset, runtime)
    report("prepare", 0, 1)
    prepared = prepare_stage.prepare(
        model,
        args,
        dynamic_shapes=dynamic_shapes,
        opset=opset,
        input_names=input_names,
        output_names=output_names,
        randomness=randomness,
    )
    report("export", 0, 1)
    graph = _graph(prepared, portable, keep_sources)
    if runtime is not None and unasked:
        better = target_stage.better(graph, runtime)
        if better is not None:
            prepared = replace(prepared, opset=better)
            graph = _graph(prepared, portable, keep_sources)
    target_stage.require_runs(graph, runtime)
    verdict = None
    if verify:
        with _readable(graph, target, external_data) as source:
            verdict = _proven(source, prepared, {"factor": factor, "rtol": rtol, "atol": atol}, progress)
    report("package", 0, 1)
    return package_stage.package(
        graph,
        prepared,
        verdict,
        target,
        portable=portable,
        external_data=external_data,
        for_ort=for_ort or "",
        name=name,
        producer=producer,
        force=force,
    )


def _graph(prepared: Prepared, portable: bool, keep_sources: bool) -> ir.Model:
    """The finished graph of a prepared model."""
    graph = lower_stage.lower(export_stage.export(prepared), portable=portable)
    graph = optimise_stage.optimise(graph, keep_sources=keep_sources)
    return convert_stage.convert(graph, prepared.opset)


def _proven(
    source: Source, prepared: Prepared, bounds: Mapping[str, float | None], progress: Progress | None
) -> Verdict:
    """The verdict on what was exported.

    Raises:
        ParityError: the answers differ; it names the layer to blame, where there is one.
    """
    model, args = prepared.original, prepared.args
    failing = Failing()
    try:
        verdict = verify_stage.verify(
            source,
            model,
            args,
            randomness=prepared.randomness,
            audited=prepared.constant,
            progress=progress,
            watch=failing,
            **bounds,  # type: ignore[arg-type]
        )
        return require_epsilons(source, model, args, verdict, watch=failing, **bounds)
    except FrozenAxisError:
        raise
    except ParityError as error:
        if not failing.inputs or prepared.randomness:
            raise
        try:
            culprits = locate(source, model, failing.inputs, **bounds).culprits  # type: ignore[arg-type]
        except InputError:
            raise error from None
        if not culprits:
            raise
        raise ParityError(f"{error}; to blame: {culprits[0]}", error.verdict) from None


@contextmanager
def _readable(graph: ir.Model, target: Path, external_data: ExternalData) -> Iterator[Source]:
    """The graph as something that onnxruntime opens."""
    if weights_stage.outside(graph, external_data) or weights_stage.size(graph) > weights_stage.MUCH:
        gc.collect()  # a trace holds its tensors in loops
        with weights_stage.draft(graph, target) as file:
            yield file
    else:
        yield ir.to_proto(graph).SerializeToString()


def verify(
    path: str | os.PathLike[str],
    model: nn.Module | str | os.PathLike[str],
    args: Tensor | Sequence[Tensor] | None = None,
    *,
    factor: float = FACTOR,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    variants: Sequence[Way] = (),
    extremes: bool = False,
    strict: bool = False,
    data: Sequence[Given] = (),
    budget: float | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Verdict:
    """Compare a saved file with the model it was made from, on sizes and values the export never saw.

    Args:
        path: a bundle or an .onnx file.
        model: the original, in eval mode; it is left as it is. Or another bundle or .onnx file, by whoever, whose
            answers are then the truth: inputs and outputs are matched by name where both have the same names, else by
            order, and those axes change that are dynamic in both.
        args: example inputs; needed only for files that poolexport did not write.
        factor, rtol, atol, seed, progress: see ``export``; the same seed gives the same verdict.
        variants: further ways of running the file, which are tried on a few of the inputs;
            ``poolexport.runtime.VARIANTS`` are those that the command line tries, and
            ``poolexport.runtime.runtimes("1.25,newest")`` are other releases of onnxruntime and other runtimes.
        extremes: try huge, tiny, infinite and NaN values as well, as the command line does.
        strict: let answers to infinities and NaN count, on which runtimes differ; else they are only told.
        data: inputs that the model will meet, to be tried as well: ``Given(name, read)``, where ``read()`` gives one
            tensor per input.
        budget: seconds after which no further check is begun, but for the example and normal values; the verdict then
            says UNVERIFIED and lists what was left out.
        resume: a file that grows by every check. Where it holds checks of the same file, model and settings, only those
            that are missing are made, and the verdict is that of an uninterrupted call.
        watch: called with every check, its inputs, what the file answered (or why it did not) and the truth.

    Returns:
        The verdict, with every check that was made.

    Raises:
        InputError: the file cannot be read, or does not belong to the model.
        ParityError: the answers differ, or an epsilon that no answer shows; the error holds the verdict.

    Example:
        >>> import tempfile, torch, poolexport
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), poolexport.nn.MaxPool2d(2)).eval()
        >>> bundle = poolexport.export(model, torch.randn(2, 3, 16, 16), tempfile.mkdtemp() + "/net.onnx")
        >>> poolexport.verify(bundle.path, model).passed
        True
    """
    if args is None:
        examples: Sequence[Tensor] = _examples(path, None if isinstance(model, nn.Module) else model)
    else:
        examples = (args,) if isinstance(args, Tensor) else tuple(args)
    manifest = read_manifest(path)
    if not isinstance(model, nn.Module):
        _load(model)
    verdict = verify_stage.verify(
        path,
        model,
        examples,
        factor=factor,
        rtol=rtol,
        atol=atol,
        seed=seed,
        randomness=manifest.randomness if manifest else None,
        variants=variants,
        extremes=extremes,
        strict=strict,
        data=data,
        budget=budget,
        resume=resume,
        progress=progress,
        watch=watch,
    )
    if not isinstance(model, nn.Module):
        return verdict
    return require_epsilons(path, model, examples, verdict, watch=watch, factor=factor, rtol=rtol, atol=atol)


def inline(path: str | os.PathLike[str], out: str | os.PathLike[str], *, force: bool = False) -> Inlined:
    """Rewrite a file in standard operators only, for runtimes that do not know model-local functions.

    Names, metadata and the place of the weights are kept; both files are run on the same inputs and must agree.

    Args:
        path: a bundle or an .onnx file, by poolexport or not.
        out: a folder to create, where ``path`` is a bundle, or a single file where it ends in ``.onnx``.
        force: replace what an earlier export left at ``out``.

    Returns:
        Where the file is, which functions it had, and on how many inputs both were compared.

    Raises:
        InputError: the file cannot be read, or an operator has no body in it.
        ExportError: the rewritten file gives another answer.
        OutputError: ``out`` is taken or cannot be written.
    """
    return inline_stage.inline(Path(path), _load(path), read_manifest(path), Path(out), force=force)


def read_manifest(path: str | os.PathLike[str]) -> Manifest | None:
    """What a file says about itself, or None where poolexport did not write it.

    Raises:
        InputError: there is no such file, or it is not an ONNX model.
    """
    text = _load(path).metadata_props.get(METADATA_KEY)
    return Manifest.from_json(text) if text else None


def _load(path: str | os.PathLike[str]) -> ir.Model:
    file = model_path(path)
    try:
        model = ir.load(file)
    except Exception as error:
        raise InputError(f"{file} is not an ONNX model: {str(error).strip().splitlines()[0]}") from error
    missing = missing_weights(model, file)
    if missing:
        raise InputError(f"{file}: {missing}")
    return model


def _examples(path: str | os.PathLike[str], other: str | os.PathLike[str] | None) -> tuple[Tensor, ...]:
    """Inputs of the shapes the file, or else the other one, was traced with."""
    manifest = read_manifest(path)
    if manifest is None and other is not None and (manifest := read_manifest(other)) is not None:
        names = [str(value.name) for value in _load(path).graph.inputs]
        order = matched(names, [port.name for port in manifest.inputs], "inputs")
        manifest = replace(
            manifest,
            inputs=tuple(manifest.inputs[k] for k in order),
            example_shapes=tuple(manifest.example_shapes[k] for k in order),
        )
    if manifest is None:
        raise InputError(f"{path} does not say which shapes it was traced with; give example inputs")
    generator = torch.Generator().manual_seed(0)
    examples = []
    for port, shape in zip(manifest.inputs, manifest.example_shapes):
        dtype = {"FLOAT": torch.float32, "DOUBLE": torch.float64, "FLOAT16": torch.float16}.get(port.dtype)
        if dtype is None:
            raise InputError(f"input {port.name!r} holds {port.dtype}; give example inputs, they cannot be made up")
        examples.append(torch.randn(shape, generator=generator).to(dtype))
    return tuple(examples)
