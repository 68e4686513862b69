"""Stage 6: write the proven model to disk, whole or not at all."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from torch import Tensor

from poolexport.bundle import DATA, MANIFEST, METADATA_KEY, MODEL, SAMPLE, Bundle, Manifest, Port, sha256
from poolexport.disk import move, require_folder, staged
from poolexport.errors import InputError, OutputError
from poolexport.graph import random_outputs, weight_files
from poolexport.pipeline.prepare import Prepared
from poolexport.pipeline.verify import Verdict
from poolexport.pipeline.weights import ExternalData, beside, outside, unload
from poolexport.runtime import plain_session

MADE_WITH = ("poolexport", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def package(
    model: ir.Model,
    prepared: Prepared,
    verdict: Verdict | None,
    path: str | os.PathLike[str],
    *,
    portable: bool = False,
    external_data: ExternalData = "auto",
    for_ort: str = "",
    name: str | None = None,
    producer: str | None = None,
    force: bool = False,
) -> Bundle:
    """Write a bundle folder, or a single file where ``path`` ends in ``.onnx``.

    Everything is written beside the target and renamed into place at the end.

    Raises:
        OutputError: the target exists and ``force`` is not set, or it cannot be written.
    """
    target = Path(path)
    require_free(target, force=force)
    manifest = describe(model, prepared, verdict, portable=portable, for_ort=for_ort)
    model.producer_name, model.producer_version = "poolexport", manifest.versions["poolexport"]
    if name is not None:
        model.graph.name = name
    if producer is not None:
        model.producer_name, model.producer_version = producer, None
    ports = prepared.input_names, prepared.output_names

    def sample(file: Path) -> None:
        np.savez(file.with_name(SAMPLE), allow_pickle=False, **_sample(file, prepared.args, *ports))

    file = write(model, manifest, target, sample=sample, external_data=external_data, force=force)
    return Bundle(target, file, manifest)


def write(
    model: ir.Model,
    manifest: Manifest | None,
    target: Path,
    *,
    sample: Callable[[Path], None],
    external_data: ExternalData = "auto",
    force: bool = False,
) -> Path:
    """Write a graph, its weights and what it says about itself; the path of its .onnx file.

    Args:
        model: its metadata is changed, and its weights go where ``external_data`` says.
        manifest: None where nothing is known about the graph; it takes a manifest to write a folder.
        target: a folder to create, or a single file where it ends in ``.onnx``.
        sample: writes ``sample.npz`` beside the model file that it is given.
        external_data, force: see ``poolexport.export``.
    """
    single = target.suffix == ".onnx"
    apart = outside(model, external_data)
    owned = single and force and _owns_weights(target)
    if single and apart and beside(target).exists() and not owned:
        raise OutputError(f"{beside(target)} exists and is no part of an earlier export; choose another path")
    if manifest is not None:
        model.metadata_props[METADATA_KEY] = manifest.to_json()
        for name, value in _flat(manifest).items():
            model.metadata_props[f"poolexport.{name}"] = value
    with staged(target) as staging:
        file = staging / (target.name if single else MODEL)
        if apart:
            unload(model, beside(file))
        else:
            ir.external_data.load_to_model(model)
        ir.save(model, file)
        if single:
            _move_pair(file, target, apart=apart, owned=owned)
            return target
        assert manifest is not None
        sample(file)
        files = [MODEL, *([MODEL + DATA] if apart else []), SAMPLE]
        text = manifest.to_json(sha256={name: sha256(staging / name) for name in files})
        (staging / MANIFEST).write_text(text + "\n")
        move(staging, target)
    return target / MODEL


def _owns_weights(file: Path) -> bool:
    """Whether the file beside a model file holds its weights."""
    if not file.is_file() or not beside(file).is_file():
        return False
    try:
        return beside(file).name in weight_files(ir.load(file))
    except Exception:
        return False


def _move_pair(source: Path, target: Path, *, apart: bool, owned: bool) -> None:
    """Rename a model and its weights into place, the model last: what lies there is never one of two pairs."""
    set_aside: list[tuple[Path, Path]] = []
    try:
        for old in (target, beside(target)) if owned or apart else ():
            if old.exists() or old.is_symlink():
                aside = old.with_name(f".{old.name}.old-{os.getpid()}")
                old.rename(aside)
                set_aside.append((old, aside))
        if apart:
            beside(source).rename(beside(target))
        source.replace(target)
    except OSError:
        if apart and not beside(source).exists():
            beside(target).unlink()
        for old, aside in reversed(set_aside):
            aside.rename(old)
        raise
    for _, aside in set_aside:
        aside.unlink()


def require_free(target: Path, *, force: bool) -> None:
    """Raise an OutputError where the target is taken or its folder cannot be written."""
    if target.exists() and not force:
        raise OutputError(f"{target} exists; choose another path, or replace it with --force (force=True)")
    if target.exists() and target.is_dir() != (target.suffix != ".onnx"):
        kind = "a folder" if target.is_dir() else "a file"
        raise OutputError(f"{target} is {kind}; it is not replaced by something of another kind")
    if target.is_dir() and any(target.iterdir()) and not _is_bundle(target):
        raise OutputError(f"{target} is a folder that holds more than a bundle; it is not replaced")
    require_folder(target)


def _is_bundle(folder: Path) -> bool:
    """Whether a folder holds what an export wrote, and nothing else."""
    if {entry.name for entry in folder.iterdir()} - {MODEL, MODEL + DATA, MANIFEST, SAMPLE} or not (
        folder / MANIFEST
    ).is_file():
        return False
    try:
        Manifest.from_json((folder / MANIFEST).read_text())
    except (InputError, ValueError):
        return False
    return True


def describe(
    model: ir.Model, prepared: Prepared, verdict: Verdict | None, *, portable: bool, for_ort: str = ""
) -> Manifest:
    """The manifest of a finished graph."""
    return Manifest(
        inputs=tuple(_port(value) for value in model.graph.inputs),
        outputs=tuple(_port(value) for value in model.graph.outputs),
        opset=prepared.opset,
        form="function" if model.functions else "inlined" if portable and prepared.layers else "plain",
        layers=dict(prepared.layers),
        inference_rules=dict(prepared.inference_rules),
        example_shapes=tuple(tuple(x.shape) for x in prepared.args),
        bound=verdict.bound if verdict else "",
        truth=verdict.truth if verdict else "",
        verdict=verdict.word if verdict else "UNVERIFIED",
        checks=len(verdict.checks) if verdict else 0,
        skipped=len(verdict.skipped) if verdict else 0,
        worst_error=verdict.worst_error if verdict else 0.0,
        versions={name: importlib.metadata.version(name) for name in MADE_WITH},
        randomness=dict(prepared.randomness),
        random_outputs=tuple(random_outputs(model)),
        for_ort=for_ort,
    )


def _flat(manifest: Manifest) -> dict[str, str]:
    """The facts a reader of the file looks for first, each under its own key."""
    return {
        "version": manifest.versions["poolexport"],
        "verdict": manifest.verdict,
        "opset": str(manifest.opset),
        "form": manifest.form,
        **{f"randomness.{path}": policy for path, policy in manifest.randomness.items()},
        **({"for_ort": manifest.for_ort} if manifest.for_ort else {}),
        **{f"inference.{path}": rule for path, rule in manifest.inference_rules.items()},
    }


def _port(value: ir.Value) -> Port:
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]
    return Port(str(value.name), str(value.dtype), tuple(shape))


def _sample(
    model: Path, args: Sequence[Tensor], inputs: Sequence[str], outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    feed = {name: x.numpy() for name, x in zip(inputs, args)}
    answers = plain_session(model, options=_single_threaded()).run(None, feed)
    return {f"input/{k}": v for k, v in feed.items()} | {f"output/{k}": v for k, v in zip(outputs, answers)}


def _single_threaded() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


__all__ = ["describe", "package", "require_free", "write"]
