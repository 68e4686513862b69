"""Where the weights of a graph go: into its file, or into a file beside it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import onnx_ir as ir

from poolexport.bundle import DATA, MODEL, WEIGHTS_KEY, sha256
from poolexport.errors import InputError, OutputError

ExternalData: TypeAlias = "bool | int | Literal['auto']"
#: Bytes of weights above which "auto" puts them outside; one .onnx file holds at most 2 GiB, graph included.
AUTO = int(1.8 * 2**30)
LARGEST = 2**31 - 2**24
#: Bytes of weights above which a graph is tried from disk: as bytes in memory it would be held three times.
MUCH = 2**24
#: Smaller tensors stay inside: runtimes read lengths and axes from them while they load the graph.
SMALL = 1024


def outside(model: ir.Model, choice: ExternalData) -> bool:
    """Whether the weights go into a file of their own.

    Raises:
        InputError: the choice is none, or the weights do not fit into the model file.
    """
    if choice is True:
        return any(_large(value) for value in model.graph.initializers.values())
    if choice is False:
        if size(model) > LARGEST:
            raise InputError(
                f"the weights take {size(model) / 2**30:.1f} GiB, and one .onnx file holds at most 2; leave out "
                "external_data=False"
            )
        return False
    return size(model) > (AUTO if choice == "auto" else choice) and outside(model, True)


def size(model: ir.Model) -> int:
    """Bytes of all weights of a graph."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def require_choice(choice: object) -> None:
    """Raise an InputError unless ``choice`` says where weights go."""
    number = isinstance(choice, int) and (isinstance(choice, bool) or 0 <= choice <= LARGEST)
    if not number and choice != "auto":
        raise InputError(
            f"external_data must be True, False, 'auto', or a number of bytes from 0 to {LARGEST}, got {choice!r}"
        )


def _large(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes >= SMALL


def unload(model: ir.Model, file: Path) -> None:
    """Write the weights to ``file`` and let the graph refer to it by name, with its size and hash in the metadata."""
    ir.external_data.unload_from_model(model, file.parent, file.name, size_threshold_bytes=SMALL)
    facts = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}}
    model.metadata_props[WEIGHTS_KEY] = json.dumps(facts)


@contextmanager
def draft(model: ir.Model, target: Path) -> Iterator[Path]:
    """The graph and its weights in a folder next to the target that is gone afterwards; the graph is not changed."""
    folder = None
    try:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
            ir.save(model, folder / MODEL, external_data=MODEL + DATA, size_threshold_bytes=SMALL)
        except OSError as error:
            raise OutputError(f"{target} could not be written: {error.strerror or error}") from error
        yield folder / MODEL
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def beside(file: str | os.PathLike[str]) -> Path:
    """The file of weights that belongs to a model file."""
    return Path(f"{os.fspath(file)}{DATA}")
