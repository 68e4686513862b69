"""Python's ``round`` of a size that follows the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import onnxscript


def entries() -> dict[Callable[..., Any], Callable[..., Any]]:
    return {round: _round}


def _round(number: ir.Value, ndigits: int | None = None) -> Any:
    if ndigits is not None:
        raise ValueError("round with digits of a size that follows the input has no form")
    op: Any = onnxscript.opset18
    return op.Cast(op.Round(number), to=int(ir.DataType.INT64))
