"""What plain torch pooling becomes: a table for ``torch.onnx.export(custom_translation_table=...)``.

>>> import torch
>>> from poolexport.translate import translation_table
>>> torch.ops.aten.adaptive_avg_pool2d.default in translation_table()
True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from poolexport.translate import adaptive, average, fractional, linalg, max, regions, rounding, sampling, scatter, unpool
from poolexport.translate._original import original, symbolic_entries
from poolexport.translate._tracing import tracing
from poolexport.translate._writing import counter, entry

__all__ = ["tracing", "translation_table"]

FAMILIES = (max, average, adaptive, fractional, unpool, scatter, linalg, regions, sampling)

Table = dict[Callable[..., Any], Callable[..., Any]]


def translation_table(*, functions: bool = False) -> Table:
    """What torch's pooling becomes in ONNX: right at any size, in every version of onnxruntime from 1.20 on.

    For ``torch.onnx.export(..., dynamo=True, custom_translation_table=translation_table())``; ``poolexport.export``
    uses it by itself. With it plain ``torch.onnx.export`` also takes the layers of ``poolexport.nn``.

    Args:
        functions: leave ``poolexport::`` nodes without bodies, for an exporter that attaches them; False writes
            standard operators only.

    Returns:
        A new table, from aten operators to the functions that write them.

    Example:
        >>> import torch
        >>> from poolexport.translate import translation_table
        >>> program = torch.onnx.export(
        ...     torch.nn.AdaptiveAvgPool2d(7),
        ...     (torch.randn(2, 3, 14, 14),),
        ...     dynamic_shapes=({0: "n", 2: "h", 3: "w"},),
        ...     dynamo=True,
        ...     verbose=False,
        ...     custom_translation_table=translation_table(),
        ... )
    """
    names = counter()
    table: Table = {}
    for family in FAMILIES:
        for name, write in family.entries().items():
            overload = _overload(name)
            if overload is not None:
                table[overload] = entry(overload, write, functions, names)
    for name, write in scatter.accumulating().items():
        overload = _overload(name)
        table[overload] = _where_accumulating(overload, entry(overload, write, functions, names))
    table |= rounding.entries()
    if not functions:
        table |= symbolic_entries(names)
    return table


def _where_accumulating(overload: Any, ours: Callable[..., Any]) -> Callable[..., Any]:
    def translate(self: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
        if accumulate:
            return ours(self, indices, values, accumulate)
        return original(overload)(self, indices, values, accumulate)

    translate.__name__ = ours.__name__
    return translate


def _overload(name: str) -> Any:
    """The operator of a qualified name, or None where it is not registered."""
    namespace, _, operator = name.partition("::")
    try:
        return getattr(getattr(torch.ops, namespace), operator).default
    except AttributeError:
        return None
