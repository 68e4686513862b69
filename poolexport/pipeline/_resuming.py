"""A file that grows by a line for every check, so that a verification that was cut off goes on after the last one.

The first line says what the checks are of: the file, the model, what was asked for, and the versions of what computes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor, nn

from poolexport.bundle import files, sha256
from poolexport.disk import replace, require_folder
from poolexport.errors import InputError, OutputError
from poolexport.graph import files_beside
from poolexport.pipeline._verdict import Check
from poolexport.runtime import Source
from poolexport.tolerance import Judgement

FORMAT, VERSION = "poolexport-checks", 1
PACKAGES = ("poolexport", "torch", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Skipped:
    """The standard refuses the input."""

    reason: str


@dataclass(frozen=True)
class Untried:
    """The runtime says that it lacks what the file needs, or cannot be given it."""

    reason: str


Outcome: TypeAlias = "Check | Skipped | Untried"


class Nothing:
    """Where nothing is kept."""

    def found(self) -> Mapping[int, Outcome]:
        """What was made before, by the number of its step."""
        return {}

    def add(self, step: int, outcome: Outcome) -> None:
        """Keep what a step has led to."""


class Kept(Nothing):
    """Outcomes in a file; one that is cut off in the middle of a line is one outcome shorter.

    Args:
        path: of the file, which is made where there is none.
        about: what the checks are of, by names that people understand.
        steps: the values and the way of running the file of every step.

    Raises:
        InputError: the file holds something else, or checks of something else.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, str], steps: Sequence[tuple[str, str]]) -> None:
        self._path, self._steps = path, steps
        head = json.dumps({"format": FORMAT, "version": VERSION, "about": about}) + "\n"
        require_folder(path)
        try:
            if not path.exists():
                replace(path, head.encode())
            content = path.read_bytes()
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
        whole = content[: content.rfind(b"\n") + 1]
        first, *lines = whole.splitlines() or [b""]
        self._require_same(first, about)
        self._found = dict(self._read(number, line) for number, line in enumerate(lines, 2))
        if len(whole) < len(content):
            os.truncate(path, len(whole))

    def found(self) -> Mapping[int, Outcome]:
        return self._found

    def add(self, step: int, outcome: Outcome) -> None:
        kind = type(outcome).__name__.lower()
        line = json.dumps({"step": step, kind: asdict(outcome)}, default=lambda number: number.item())
        try:
            with self._path.open("ab") as file:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written: {error.strerror or error}") from error

    def _require_same(self, first: bytes, about: Mapping[str, str]) -> None:
        try:
            head = json.loads(first)
            theirs = head["about"] if head["format"] == FORMAT else None
        except (ValueError, KeyError, TypeError):
            theirs = None
        if not isinstance(theirs, dict):
            raise InputError(f"{self._path} holds no checks of poolexport; choose another file to resume from")
        if head.get("version") != VERSION:
            raise InputError(f"{self._path} was written by another poolexport; choose another file, or delete it")
        other = next((name for name in about if theirs.get(name) != about[name]), None)
        if other is not None:
            raise InputError(f"{self._path} holds checks with another {other}; choose another file, or delete it")

    def _read(self, number: int, line: bytes) -> tuple[int, Outcome]:
        try:
            entry = json.loads(line)
            step, outcome = entry["step"], _outcome(entry)
            if type(step) is not int or not 0 <= step < len(self._steps):
                raise ValueError("no step of those that were planned")
            if isinstance(outcome, Check) and (outcome.values, outcome.runtime) != self._steps[step]:
                raise ValueError("another check than was planned")
            return step, outcome
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{self._path} is damaged in line {number}; delete it, and begin anew") from error


def _outcome(entry: Mapping[str, Any]) -> Outcome:
    if "skipped" in entry:
        return Skipped(**entry["skipped"])
    if "untried" in entry:
        return Untried(**entry["untried"])
    fields = dict(entry["check"])
    fields["shapes"] = tuple(map(tuple, fields["shapes"]))
    fields["judgements"] = tuple(Judgement(**judgement) for judgement in fields["judgements"])
    return Check(**fields)


def about(
    source: Source, standard: nn.Module | Source, example: Sequence[Tensor], settings: Sequence[object]
) -> dict[str, str]:
    """What checks depend on, by names that people understand.

    Args:
        source: the file.
        standard: what it is compared with.
        example: the inputs that it was traced with.
        settings: whatever else decides what is tried, and how it is judged.
    """
    model = _model_digest(standard) if isinstance(standard, nn.Module) else _file_digest(standard)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "file": _file_digest(source),
        "model": model,
        "settings": _digest([json.dumps(settings, sort_keys=True).encode(), *map(_content, example)]),
        "version of what computes": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _file_digest(source: Source) -> str:
    if isinstance(source, bytes):
        return _digest([source])
    path = Path(source)
    held = files(path)
    held += [file for file in files_beside(ir.load(held[0]), held[0]) if file not in held]
    return _digest(sha256(file).encode() for file in held)


def _model_digest(model: nn.Module) -> str:
    modules = [f"{path}:{type(module).__qualname__}:{module.extra_repr()}" for path, module in model.named_modules()]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    named = [part for name, tensor in tensors.items() for part in (name.encode(), _content(tensor))]
    # the same weights give other answers where forward is another
    code = [_code(kind) for kind in dict.fromkeys(map(type, model.modules()))]
    return _digest([*(module.encode() for module in modules), *code, *named])


def _code(kind: type) -> bytes:
    """What a class is written as; empty where nobody has it, as in an interpreter."""
    try:
        return inspect.getsource(kind).encode()
    except (OSError, TypeError):
        return b""


def _content(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return f"{tensor.dtype} {tuple(tensor.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
