"""What export leaves on disk and everything else reads: a folder, or a plain .onnx file that describes itself.

    model.onnx      the graph and its weights; its metadata repeats the manifest
    model.onnx.data the weights, where they are too large for model.onnx or were asked to be outside it
    manifest.json   inputs, outputs, opset, inference rules, verdict, versions, hashes of the other files
    sample.npz      one example input and the answer to it

No torch in here: a server reads bundles.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from poolexport.errors import InputError

MODEL = "model.onnx"
#: What the name of a file of weights adds to that of its model.
DATA = ".data"
MANIFEST = "manifest.json"
SAMPLE = "sample.npz"
METADATA_KEY = "poolexport.manifest"
#: Sizes and hashes of the files of weights beside a model, by name.
WEIGHTS_KEY = "poolexport.weights"


@dataclass(frozen=True)
class Port:
    """An input or output: its name, its element type, and its shape with names for dynamic axes."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a model file says about itself.

    Args:
        inputs, outputs: ports in order.
        opset: version of the standard operators.
        form: "function" (bodies are model-local functions), "inlined" (they were written out where they are called), or
            "plain" (there is no operator of ours).
        layers: method of every pooling layer, by dotted path.
        inference_rules: the fixed rule of every layer that is random in training, by dotted path.
        example_shapes: shapes the graph was traced with, one per input.
        bound: how far an answer was allowed to be from the truth.
        truth: "float64", or "float32" where the model cannot run in float64.
        verdict: "PASS", or "UNVERIFIED" where verification was switched off, or an output is random.
        checks: number of comparisons that were made.
        skipped: number of inputs not compared because the model itself refuses them.
        worst_error: largest error against the float64 truth, relative to the scale of its output.
        versions: of the packages that made the file.
        randomness: what a policy made of layers that draw, by dotted path: "expectation", "fixed(seed)" or "keep".
        random_outputs: names of the outputs that differ from run to run, of which only shape and type were compared.
        for_ort: the onnxruntime it was made for; empty where none was named.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: int
    form: str
    layers: Mapping[str, str]
    inference_rules: Mapping[str, str]
    example_shapes: tuple[tuple[int, ...], ...]
    bound: str
    truth: str
    verdict: str
    checks: int
    skipped: int
    worst_error: float
    versions: Mapping[str, str] = field(default_factory=dict)
    randomness: Mapping[str, str] = field(default_factory=dict)
    random_outputs: tuple[str, ...] = ()
    for_ort: str = ""

    def to_json(self, **extra: Any) -> str:
        return json.dumps({**asdict(self), **extra}, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what ``to_json`` wrote; unknown fields of later versions are ignored.

        Raises:
            InputError: the text is not a manifest.
        """
        try:
            fields = json.loads(text)
            known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
            for side in ("inputs", "outputs"):
                known[side] = tuple(Port(p["name"], p["dtype"], tuple(p["shape"])) for p in known[side])
            known["example_shapes"] = tuple(tuple(shape) for shape in known["example_shapes"])
            known["random_outputs"] = tuple(known.get("random_outputs", ()))
            return cls(**known)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"the manifest is damaged: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Bundle:
    """An exported model on disk: ``path`` is what was asked for, ``model`` the .onnx file in it."""

    path: Path
    model: Path
    manifest: Manifest


def model_path(path: str | os.PathLike[str]) -> Path:
    """The .onnx file of a bundle, or the file itself.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        inner = path / MODEL
        if not inner.is_file():
            raise InputError(f"{path} is a folder without {MODEL}; it is not a bundle")
        return inner
    if not path.is_file():
        raise InputError(f"there is no model at {path}")
    return path


def files(path: Path) -> list[Path]:
    """The files that a bundle consists of, or a model file and the weights that poolexport puts beside it."""
    if path.is_dir():
        found = [path / name for name in (MODEL, MODEL + DATA, MANIFEST, SAMPLE)]
    else:
        found = [path, path.with_name(path.name + DATA)]
    return [file for file in found if file.is_file()]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
