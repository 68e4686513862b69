"""torch's own translations, and those of its symbolic operators, through which our layers come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import onnx_ir as ir
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.onnx.ops import _symbolic_impl

from poolexport.translate._writing import Writer
from poolexport_ops import DOMAIN, operators


@cache
def _registry() -> ONNXRegistry:
    return ONNXRegistry.from_torchlib()


def original(overload: Any) -> Callable[..., Any]:
    """torch's own translation of an aten operator."""
    function: Callable[..., Any] = _registry().get_decomps(overload)[0].onnx_function
    return function


def translated(overload: Any) -> bool:
    """Whether torch translates an aten operator itself; others it writes in terms of simpler ones."""
    return bool(_registry().get_decomps(overload))


def symbolic_entries(names: Iterator[int]) -> dict[Any, Callable[..., Any]]:
    """Nodes that a layer of ours leaves while torch traces, written out as standard nodes."""
    one, many = torch.ops.onnx_symbolic._symbolic.default, torch.ops.onnx_symbolic._symbolic_multi_out.default
    return {one: _symbolic(one, names), many: _symbolic(many, names)}


def _symbolic(overload: Any, names: Iterator[int]) -> Callable[..., Any]:
    def translate(inputs: Sequence[ir.Value], op_type: str, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("domain") != DOMAIN:
            return original(overload)(inputs, op_type, *args, **kwargs)
        keys = ("attr_keys", "attr_types", "attr_pos", "attr_ints", "attr_floats", "attr_strs")
        attributes = _symbolic_impl.EncodedAttrs(**{key: list(kwargs[key]) for key in keys}).to_dict()
        dtype = inputs[0].dtype
        assert dtype is not None
        return Writer(dtype, False, f"pooling{next(names)}_").call(operators()[op_type], *inputs, **attributes)

    translate.__name__ = overload.name().replace("::", "_").replace(".", "_")
    return translate
