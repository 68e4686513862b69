"""A model repository for Triton Inference Server.

NAME/config.pbtxt     written with Triton's own protobuf, from the ports and the proven batch axis
NAME/1/model.onnx     and its weights
NAME/warmup/*         the bundle's sample, which Triton runs before it is ready
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from poolexport.bundle import MODEL
from poolexport.disk import move, require_folder, staged
from poolexport.errors import InputError, MissingExtraError, OutputError
from poolexport.handoff.deployment import Deployment

#: ONNX's element types in Triton's words.
TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
    "tensor(bfloat16)": "TYPE_BF16",
}
#: Rows that Triton puts together at most, unless told otherwise.
MAX_BATCH = 8


def triton(
    model: Deployment,
    repository: str | os.PathLike[str],
    *,
    version: int = 1,
    max_batch: int = MAX_BATCH,
    op_library: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Path:
    """Add a model to a Triton model repository.

    Args:
        model: what to hand on.
        repository: a folder that exists, or is created.
        version: the number of its version folder.
        max_batch: rows that Triton may put together; it does so only where the batch axis was proven.
        op_library: a library of custom operators that Triton loads with the model.
        force: replace a model of the same name.

    Returns:
        The model's folder in the repository.

    Raises:
        InputError: an argument cannot be used, or a type that Triton does not have.
        MissingExtraError: Triton's protobuf is not installed.
        OutputError: the model is there already, or cannot be written.
    """
    if version < 1:
        raise InputError(f"a version is a number of at least 1, not {version}")
    if max_batch < 1:
        raise InputError(f"at least one row makes a batch, not {max_batch}")
    library = Path(op_library) if op_library is not None else None
    if library is not None and not library.is_file():
        raise InputError(f"there is no library at {library}")
    text = _text(configuration(model, max_batch=max_batch, op_library=library.name if library else None))
    root = Path(repository)
    target = root / model.name
    if target.exists() and not force:
        raise OutputError(f"{target} exists; choose another name, or replace it with --force (force=True)")
    if target.exists() and not (target / "config.pbtxt").is_file():
        raise OutputError(f"{target} is not a model of a Triton repository; it is not replaced")
    require_folder(root)
    root.mkdir(exist_ok=True)
    require_folder(target)
    with staged(target) as staging:
        folder = staging / str(version)
        folder.mkdir()
        shutil.copyfile(model.file, folder / MODEL)
        for file in model.weights:
            shutil.copyfile(file, folder / file.name)
        if library is not None:
            shutil.copyfile(library, folder / library.name)
        if model.sample:
            (staging / "warmup").mkdir()
            for name, x in model.sample.items():
                (staging / "warmup" / _file_of(model, name)).write_bytes(_row(model, x).tobytes())
        (staging / "config.pbtxt").write_text(text)
        move(staging, target)
    return target


def configuration(model: Deployment, *, max_batch: int = MAX_BATCH, op_library: str | None = None) -> Any:
    """The ``inference.ModelConfig`` of a model."""
    messages = _messages()
    rows = max_batch if model.batch_axis else 0
    config = messages.ModelConfig(
        name=model.name, backend="onnxruntime", default_model_filename=MODEL, max_batch_size=rows
    )
    for port in model.inputs:
        _describe(config.input.add(), port, batched=bool(rows))
    for port in model.outputs:
        _describe(config.output.add(), port, batched=bool(rows))
    if rows > 1:
        config.dynamic_batching.SetInParent()
    if model.sample:
        warmup = config.model_warmup.add(name="sample", batch_size=1 if rows else 0)
        for port in model.inputs:
            row = _row(model, model.sample[port.name])
            entry = warmup.inputs[port.name]
            entry.data_type = messages.DataType.Value(_type(port))
            entry.dims.extend(row.shape)
            entry.input_data_file = _file_of(model, port.name)
    if op_library is not None:
        config.model_operations.op_library_filename.append(op_library)
    return config


def _row(model: Deployment, x: np.ndarray) -> np.ndarray:
    """What Triton reads for one request: a row without the batch axis, or everything where there is none."""
    return np.ascontiguousarray(x[0] if model.batch_axis else x)


def _file_of(model: Deployment, name: str) -> str:
    """Input names may hold anything; files are numbered."""
    return f"input{[port.name for port in model.inputs].index(name)}"


def _describe(entry: Any, port: ort.NodeArg, *, batched: bool) -> None:
    lengths = [n if isinstance(n, int) else -1 for n in port.shape[1 if batched else 0 :]]
    entry.name = port.name
    entry.data_type = _messages().DataType.Value(_type(port))
    entry.dims.extend(lengths or [1])
    if not lengths:
        entry.reshape.SetInParent()


def _type(port: ort.NodeArg) -> str:
    if port.type not in TYPES:
        raise InputError(f"{port.name!r} is a {port.type}, which Triton has no word for")
    return TYPES[port.type]


def _messages() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise MissingExtraError("tritonclient[grpc]", "triton", "writing a Triton model repository") from error
    return model_config_pb2


def _text(config: Any) -> str:
    from google.protobuf import text_format

    return text_format.MessageToString(config)
