"""What every serving system wants to know about a model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from poolexport.bundle import METADATA_KEY, SAMPLE, Manifest, model_path
from poolexport.errors import InputError
from poolexport.graph import missing_weights, weight_files
from poolexport.runtime import plain_session
from poolexport.runtime.rows import batch_axis, mixed_rows

#: What folders, containers and Kubernetes objects may be called, all at once.
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Deployment:
    """A model that can be handed on.

    Args:
        name: what it is called there.
        path: the bundle, or the file.
        file: its .onnx file.
        weights: files of weights beside it.
        manifest: what poolexport found when it made the file; None where it did not make it.
        inputs, outputs: onnxruntime's ports; a length is a number, a name, or None.
        sample: inputs that it is known to take, by name; empty where none are known.
        batch_axis: name of the axis along which requests may be put together; empty where they may not.
        unbatched: why they may not.
    """

    name: str
    path: Path
    file: Path
    weights: tuple[Path, ...]
    manifest: Manifest | None
    inputs: tuple[ort.NodeArg, ...]
    outputs: tuple[ort.NodeArg, ...]
    sample: Mapping[str, np.ndarray] = field(default_factory=dict)
    batch_axis: str = ""
    unbatched: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file, *self.weights)


def deployment(path: str | os.PathLike[str], name: str | None = None) -> Deployment:
    """Read a bundle or an .onnx file.

    Args:
        path: of the bundle or the file.
        name: lower-case letters, digits and hyphens; made from the path by default.

    Raises:
        InputError: it cannot be loaded, it was not verified, or the name cannot be used.
    """
    file = model_path(path)
    runtime = plain_session(path)
    text = runtime.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    manifest = Manifest.from_json(text) if text else None
    if manifest is not None and manifest.verdict != "PASS":
        raise InputError(
            f"{path} says {manifest.verdict}: its numbers were not compared with those of its model; export it with "
            "verification before it is handed on"
        )
    graph = ir.load(file)
    missing = missing_weights(graph, file)
    if missing:
        raise InputError(f"{file}: {missing}")
    sample = _sample(file.with_name(SAMPLE)) if Path(path).is_dir() else {}
    axis, unbatched = _batched(runtime, sample)
    return Deployment(
        _name(Path(path), name),
        Path(path),
        file,
        tuple(file.with_name(weights) for weights in weight_files(graph)),
        manifest,
        tuple(runtime.get_inputs()),
        tuple(runtime.get_outputs()),
        sample,
        axis,
        unbatched,
    )


def _name(path: Path, name: str | None) -> str:
    if name is None:
        name = re.sub(r"[^a-z0-9]+", "-", path.absolute().name.removesuffix(".onnx").lower()).strip("-")[:63].strip("-")
        if not NAME.fullmatch(name):
            raise InputError(f"no name can be made from {path}; give one (--name)")
    elif not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name: use up to 63 lower-case letters and digits, with hyphens between them")
    return name


def _sample(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {key.removeprefix("input/"): arrays[key] for key in arrays.files if key.startswith("input/")}
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _batched(runtime: ort.InferenceSession, sample: Mapping[str, np.ndarray]) -> tuple[str, str]:
    axis = batch_axis(runtime)
    if not axis:
        return "", "its inputs and outputs have no dynamic first axis in common"
    if not sample:
        return "", "there is no sample to prove that rows of a batch are independent; hand on a bundle"
    mixed = mixed_rows(runtime, sample)
    return ("", mixed) if mixed else (axis, "")
