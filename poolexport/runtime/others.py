"""Runtimes of other make: ONNX's own reference implementation, and OpenVINO."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from poolexport.bundle import model_path
from poolexport.errors import first_line
from poolexport.runtime.opening import Source
from poolexport.runtime.ways import Form, LacksError

#: Lines of OpenVINO's messages that tell its developers something.
OPENVINOS = ("Exception from", "Check '", "FrontEnd API", "While validating", "Summary")


@dataclass(frozen=True)
class Reference:
    """``onnx.reference``, which says what operators mean, in numpy.

    It does not look at the names by which bodies of one operator are told apart, and so it is given the file inlined.
    Nobody serves with it and it has bugs of its own: what it raises is told and does not count, what it answers does.
    """

    runtime: ClassVar[str] = "onnx.reference"
    form: ClassVar[Form] = "inlined"
    release: ClassVar[None] = None

    def __str__(self) -> str:
        return f"reference of onnx {importlib.metadata.version('onnx')}"

    @contextmanager
    def running(self, source: Source) -> Iterator[Evaluator]:
        """The file, opened.

        Raises:
            LacksError: it cannot read the file.
        """
        yield Evaluator(source)


class Evaluator:
    """A file that is open in ``onnx.reference``.

    Args:
        source: the file.

    Raises:
        LacksError: it cannot read the file.
    """

    def __init__(self, source: Source) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        try:
            model = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(model_path(source))
            self._evaluator = ReferenceEvaluator(model)
        except Exception as error:
            raise LacksError(first_line(error)) from error

    def run(self, output_names: None, input_feed: Mapping[str, np.ndarray], /) -> list[Any]:
        """Every output, in order.

        Raises:
            LacksError: it cannot run the file.
        """
        try:
            # numpy warns of infinities where runtimes answer with them
            with np.errstate(all="ignore"):
                return list(self._evaluator.run(None, dict(input_feed)))
        except Exception as error:
            raise LacksError(first_line(error)) from error


@dataclass(frozen=True)
class OpenVINO:
    """OpenVINO on the CPU, computing in float32; it is given the file inlined."""

    runtime: ClassVar[str] = "OpenVINO"
    form: ClassVar[Form] = "inlined"
    release: ClassVar[None] = None

    def __str__(self) -> str:
        return f"OpenVINO {importlib.metadata.version('openvino')}"

    @contextmanager
    def running(self, source: Source) -> Iterator[Compiled]:
        """The file, compiled."""
        yield Compiled(source)


class Compiled:
    """A file that is open in OpenVINO.

    Args:
        source: the file.

    Raises:
        RuntimeError: it does not load the file.
    """

    def __init__(self, source: Source) -> None:
        import openvino

        core = openvino.Core()
        try:
            model = core.read_model(source if isinstance(source, bytes) else os.fspath(model_path(source)))
            self._compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        except RuntimeError as error:
            raise RuntimeError(_telling(error)) from error

    def run(self, output_names: None, input_feed: Mapping[str, np.ndarray], /) -> list[np.ndarray]:
        """Every output, in order.

        Raises:
            RuntimeError: it fails.
        """
        try:
            found = self._compiled(dict(input_feed))
        except RuntimeError as error:
            raise RuntimeError(_telling(error)) from error
        return [np.array(found[k]) for k in range(len(self._compiled.outputs))]


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _telling(error: Exception) -> str:
    """What OpenVINO says beside where in its own sources it says so, on one line.

    Example:
        >>> _telling(RuntimeError("Exception from core.cpp:84:\\nModel was not converted:\\n-- failed: ArgMax"))
        'Model was not converted: -- failed: ArgMax'
    """
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(OPENVINOS)]
    return " ".join(dict.fromkeys((*kept[:1], *kept[-1:]))) or first_line(error)
