"""Element types: the protocol's names, numpy's, onnxruntime's, and what a tensor of a model looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from poolexport.errors import InputError

#: onnxruntime's name of a type, the protocol's, and numpy's; strings have no fixed size.
ROWS = (
    ("bool", "BOOL", np.bool_),
    ("uint8", "UINT8", np.uint8),
    ("uint16", "UINT16", np.uint16),
    ("uint32", "UINT32", np.uint32),
    ("uint64", "UINT64", np.uint64),
    ("int8", "INT8", np.int8),
    ("int16", "INT16", np.int16),
    ("int32", "INT32", np.int32),
    ("int64", "INT64", np.int64),
    ("float16", "FP16", np.float16),
    ("float", "FP32", np.float32),
    ("double", "FP64", np.float64),
    ("string", "BYTES", np.object_),
)
BYTES = "BYTES"
#: Names of all types of the protocol; BF16 is one that numpy has not, and so no model here.
DATATYPES = (*(row[1] for row in ROWS), "BF16")
_BY_ORT = {f"tensor({ort})": (datatype, np.dtype(dtype)) for ort, datatype, dtype in ROWS}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Args:
        name: of it.
        datatype: the protocol's name of its element type.
        dtype: numpy's.
        shape: lengths of its axes; a name, or "" where there is none, for a length that may change.
    """

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]
    rank: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", len(self.shape))

    @property
    def lengths(self) -> list[int]:
        """The shape as the protocol writes it: -1 for a length that may change."""
        return [length if isinstance(length, int) else -1 for length in self.shape]


def spec(argument: Any) -> TensorSpec:
    """The input or output that onnxruntime describes.

    Raises:
        InputError: the protocol has no such type.
    """
    if argument.type not in _BY_ORT:
        raise InputError(f"{argument.name!r} is a {argument.type}, which the inference protocol cannot carry")
    datatype, dtype = _BY_ORT[argument.type]
    shape = tuple(length if isinstance(length, int) else str(length or "") for length in argument.shape)
    return TensorSpec(argument.name, datatype, dtype, shape)
