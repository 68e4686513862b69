"""A file with functions, rewritten in standard operators only, and compared with what it was."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from poolexport import stress
from poolexport.bundle import METADATA_KEY, SAMPLE, WEIGHTS_KEY, Manifest
from poolexport.errors import ExportError, InputError
from poolexport.graph import weight_files
from poolexport.pipeline._forms import inlined
from poolexport.pipeline.package import require_free, write
from poolexport.pipeline.weights import draft, outside
from poolexport.runtime import plain_session
from poolexport.tolerance import judge

STANDARD = ("", "ai.onnx")
#: By how much dynamic axes differ from the traced lengths.
STEPS = (0, 1, 3)
#: Length of an axis of which nothing is known.
LENGTH = 6
NUMPY = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class Inlined:
    """A rewritten file.

    Args:
        path: of the .onnx file.
        functions: names of the functions that are no more, each with its domain.
        compared: number of inputs on which both files gave the same answer; 0 where none could be made up.
    """

    path: Path
    functions: tuple[str, ...]
    compared: int


def inline(source: Path, model: ir.Model, manifest: Manifest | None, target: Path, *, force: bool = False) -> Inlined:
    """Write ``model``, which was read from ``source``, to ``target`` in standard operators only.

    Raises:
        InputError: an operator has no body in the file, or the target does not suit the source.
        ExportError: the rewritten file gives another answer.
        OutputError: the target is taken or cannot be written.
    """
    folder = target.suffix != ".onnx"
    if folder and not source.is_dir():
        raise InputError(f"{source} is a single file, so the target must be one, too: let {target} end in .onnx")
    if folder and manifest is None:
        raise InputError(f"{source} has no manifest to go into a folder; let {target} end in .onnx")
    require_free(target, force=force)
    functions = tuple(f"{f.domain}::{f.name}" for f in model.functions.values())
    external = bool(weight_files(model))
    plain = _standard_only(model)
    if manifest is not None and manifest.form == "function":
        manifest = replace(manifest, form="inlined")
    if external and outside(plain, True):
        with draft(plain, target) as file:
            compared = _compare(plain_session(source), plain_session(file), manifest)
    else:
        content = ir.to_proto(_loaded(plain)).SerializeToString()
        compared = _compare(plain_session(source), plain_session(content), manifest)
    if manifest is None:
        plain.metadata_props.pop(METADATA_KEY, None)
    plain.metadata_props.pop(WEIGHTS_KEY, None)

    def sample(file: Path) -> None:
        shutil.copyfile(source / SAMPLE, file.with_name(SAMPLE))

    path = write(plain, manifest, target, sample=sample, external_data=external or "auto", force=force)
    return Inlined(path, functions, compared)


def _standard_only(model: ir.Model) -> ir.Model:
    plain = inlined(model)
    left = {f"{node.domain}::{node.op_type}" for node in plain.graph.all_nodes() if node.domain not in STANDARD}
    if left:
        raise InputError(
            f"{', '.join(sorted(left))} has no body in the file, so there is nothing to write in its place"
        )
    return plain


def _loaded(model: ir.Model) -> ir.Model:
    return ir.external_data.load_to_model(model)


def _compare(before: ort.InferenceSession, after: ort.InferenceSession, manifest: Manifest | None) -> int:
    """On how many inputs both give the same answer.

    Raises:
        ExportError: they do not.
    """
    compared = 0
    for feed in _feeds(before.get_inputs(), manifest):
        try:
            expected = before.run(None, feed)
        except Exception:
            continue
        try:
            answers = after.run(None, feed)
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise ExportError(f"inlined, the file does not run: {reason}; nothing was written") from error
        for port, answer, truth in zip(before.get_outputs(), answers, expected, strict=True):
            reason = _difference(answer, truth)
            if reason:
                raise ExportError(f"inlined, output {port.name!r} is another: {reason}; nothing was written")
        compared += 1
    return compared


def _difference(answer: Any, truth: Any) -> str:
    """How two answers differ, which may be arrays, sequences or maps of them; empty where they do not."""
    if isinstance(truth, np.ndarray) and isinstance(answer, np.ndarray) and truth.dtype.kind in "fiub":
        return judge(answer, truth, truth).reason
    if isinstance(truth, (list, tuple)) and isinstance(answer, (list, tuple)):
        if len(answer) != len(truth):
            return f"{len(answer)} entries instead of {len(truth)}"
        return next(filter(None, map(_difference, answer, truth)), "")
    if isinstance(truth, dict) and isinstance(answer, dict):
        return _difference([*answer, *answer.values()], [*truth, *truth.values()])
    same = (
        np.array_equal(answer, truth)
        if isinstance(truth, np.ndarray)
        else type(answer) is type(truth) and answer == truth
    )
    return "" if same else f"{answer!r} instead of {truth!r}"


def _feeds(ports: Sequence[ort.NodeArg], manifest: Manifest | None) -> Iterator[dict[str, np.ndarray]]:
    known = manifest.example_shapes if manifest is not None else tuple(None for _ in ports)
    if not all(port.type in NUMPY for port in ports):
        return
    for step, regime in itertools.product(STEPS, ("normal", "ties", "sparse")):
        feed = {}
        for seed, (port, example) in enumerate(zip(ports, known)):
            shape = tuple(
                dim if isinstance(dim, int) else step + (example[axis] if example else LENGTH)
                for axis, dim in enumerate(port.shape)
            )
            dtype = np.dtype(NUMPY[port.type])
            floating = dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float32)
            feed[port.name] = stress.draw(regime, shape, floating, seed).astype(dtype)
        yield feed
        if all(isinstance(dim, int) for port in ports for dim in port.shape) and step:
            return
