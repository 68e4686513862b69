"""One way to open a model: a bundle, an .onnx file, or the bytes of one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import onnxruntime as ort

from poolexport.bundle import model_path
from poolexport.errors import InputError
from poolexport.runtime.functions import Source
from poolexport.runtime.kernels import kernel_library, register_kernels, registered


def session(
    path: Source,
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    options: ort.SessionOptions | None = None,
    kernels: bool | None = None,
) -> ort.InferenceSession:
    """An onnxruntime session on an exported model.

    Args:
        path: a bundle folder, an .onnx file, or the bytes of a model.
        threads: threads one operator may use; onnxruntime's own choice by default.
        providers: execution providers in order of preference; the CPU by default.
        options: session options to start from; ``threads`` and native kernels are set in them.
        kernels: run the operators of ``poolexport`` natively. None does so where the kernels were built, True insists
            on them, and False runs the file as any onnxruntime does.

    Returns:
        An ``onnxruntime.InferenceSession``; ``session.run(None, {name: array})`` returns the list of outputs.

    Raises:
        InputError: there is no such file, onnxruntime cannot load it, or ``options`` hold kernels that are not wanted.
        MissingKernelsError: native kernels are insisted on and there are none, or ``options`` hold those of another
            model.

    Example:
        >>> import poolexport
        >>> poolexport.session("missing.onnx")
        Traceback (most recent call last):
            ...
        poolexport.errors.InputError: there is no model at missing.onnx
    """
    if options is None:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong comes back as an exception
    if threads is not None:
        options.intra_op_num_threads = threads
    already = registered(options) is not None
    if already and kernels is False:
        raise InputError("native kernels are registered with these session options: kernels=False needs others")
    if kernels or (kernels is None and not already and kernel_library() is not None):
        register_kernels(options, path)
    source = path if isinstance(path, bytes) else os.fspath(model_path(path))
    try:
        return ort.InferenceSession(source, options, providers=list(providers or ["CPUExecutionProvider"]))
    except Exception as error:
        name = "the model" if isinstance(path, bytes) else os.fspath(path)
        reason = _weights(str(error)) or str(error).strip().splitlines()[0]
        missing = re.search(r"Could not find an implementation for (\w+)", reason)
        if missing:
            reason = f"it has no {missing[1]} for this data type; export the model in float32, or add a provider"
        raise InputError(f"onnxruntime {ort.__version__} cannot load {name}: {reason}") from error


def plain_session(
    path: Source, *, threads: int | None = None, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """A session that runs a file as any onnxruntime does, without native kernels: what a verdict is about."""
    return session(path, threads=threads, options=options, kernels=False)


def _weights(text: str) -> str:
    """What is wrong with the file of weights beside a model, if that is what onnxruntime complains about."""
    gone = re.search(
        r'External data path does not exist: "?([^"\n]+)|cannot get file size: [^\[\n]*\[([^\]\n]+)\]', text
    )
    if gone:
        name = os.path.basename(gone[1] or gone[2])
        return f"its weights are in {name}, which is missing; keep both files in one folder, under their names"
    if "External initializer" in text:
        return "the file of its weights is shorter than it was; copy both files anew"
    return ""
