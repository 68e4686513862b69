"""Stage 6: write the proven model to disk, whole or not at all."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from torch import Tensor

from poolexport.bundle import MANIFEST, METADATA_KEY, MODEL, SAMPLE, Bundle, Manifest, Port, sha256
from poolexport.errors import InputError, OutputError
from poolexport.graph import random_outputs
from poolexport.pipeline.prepare import Prepared
from poolexport.pipeline.verify import Verdict
from poolexport.runtime import session

MADE_WITH = ("poolexport", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def package(
    model: ir.Model,
    prepared: Prepared,
    verdict: Verdict | None,
    path: str | os.PathLike[str],
    *,
    portable: bool = False,
    force: bool = False,
) -> Bundle:
    """Write a bundle folder, or a single file where ``path`` ends in ``.onnx``.

    Everything is written beside the target and renamed into place at the end.

    Raises:
        OutputError: the target exists and ``force`` is not set, or it cannot be written.
    """
    target = Path(path)
    require_free(target, force=force)
    manifest = describe(model, prepared, verdict, portable=portable)
    model.metadata_props[METADATA_KEY] = manifest.to_json()
    for name, value in _flat(manifest).items():
        model.metadata_props[f"poolexport.{name}"] = value
    model.producer_name, model.producer_version = "poolexport", manifest.versions["poolexport"]
    with _beside(target) as staging:
        ir.save(model, staging / MODEL)
        if target.suffix == ".onnx":
            _move(staging / MODEL, target)
            return Bundle(target, target, manifest)
        sample = _sample(staging / MODEL, prepared.args, prepared.input_names, prepared.output_names)
        np.savez(staging / SAMPLE, allow_pickle=False, **sample)
        text = manifest.to_json(sha256={MODEL: sha256(staging / MODEL), SAMPLE: sha256(staging / SAMPLE)})
        (staging / MANIFEST).write_text(text + "\n")
        _move(staging, target)
    return Bundle(target, target / MODEL, manifest)


def require_free(target: Path, *, force: bool) -> None:
    """Raise an OutputError where the target is taken or its folder cannot be written."""
    if target.exists() and not force:
        raise OutputError(f"{target} exists; choose another path, or replace it with --force (force=True)")
    if target.exists() and target.is_dir() != (target.suffix != ".onnx"):
        kind = "a folder" if target.is_dir() else "a file"
        raise OutputError(f"{target} is {kind}; it is not replaced by something of another kind")
    if target.is_dir() and any(target.iterdir()) and not _is_bundle(target):
        raise OutputError(f"{target} is a folder that holds more than a bundle; it is not replaced")
    folder = target.absolute().parent
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder; choose another path")
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {folder} cannot be written; check its permissions")


def _is_bundle(folder: Path) -> bool:
    """Whether a folder holds what an export wrote, and nothing else."""
    if {entry.name for entry in folder.iterdir()} - {MODEL, MANIFEST, SAMPLE} or not (folder / MANIFEST).is_file():
        return False
    try:
        Manifest.from_json((folder / MANIFEST).read_text())
    except (InputError, ValueError):
        return False
    return True


def describe(model: ir.Model, prepared: Prepared, verdict: Verdict | None, *, portable: bool) -> Manifest:
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
    )


def _flat(manifest: Manifest) -> dict[str, str]:
    """The facts a reader of the file looks for first, each under its own key."""
    return {
        "version": manifest.versions["poolexport"],
        "verdict": manifest.verdict,
        "opset": str(manifest.opset),
        "form": manifest.form,
        **{f"randomness.{path}": policy for path, policy in manifest.randomness.items()},
        **{f"inference.{path}": rule for path, rule in manifest.inference_rules.items()},
    }


def _port(value: ir.Value) -> Port:
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]
    return Port(str(value.name), str(value.dtype), tuple(shape))


def _sample(
    model: Path, args: Sequence[Tensor], inputs: Sequence[str], outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    feed = {name: x.numpy() for name, x in zip(inputs, args)}
    answers = session(model, options=_single_threaded()).run(None, feed)
    return {f"input/{k}": v for k, v in feed.items()} | {f"output/{k}": v for k, v in zip(outputs, answers)}


def _single_threaded() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder next to the target that is gone afterwards, whatever happens."""
    staging = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
        yield staging
    except OSError as error:
        raise OutputError(
            f"{target} could not be written: {error.strerror or error}; nothing was left behind"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Rename into place; an older target is set aside first and comes back if the rename fails."""
    if source.is_dir():
        source.chmod(0o755)
    if not target.exists() or target.is_file():
        source.replace(target)
        return
    aside = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(aside)
    try:
        source.rename(target)
    except OSError:
        aside.rename(target)
        raise
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()


__all__ = ["describe", "package", "require_free"]
