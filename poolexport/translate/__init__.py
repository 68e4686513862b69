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

from poolexport.errors import InputError
from poolexport.translate import (
    adaptive,
    average,
    fractional,
    linalg,
    max,
    nearest,
    randomness,
    regions,
    rounding,
    sampling,
    scatter,
    unpool,
)
from poolexport.translate._original import original, symbolic_entries
from poolexport.translate._tracing import decision_by_values, tracing
from poolexport.translate._writing import counter, entry

__all__ = ["decision_by_values", "tracing", "translation_table"]

FAMILIES = (max, average, adaptive, fractional, unpool, scatter, linalg, regions, sampling, nearest, randomness)

#: Versions that torch's exporter writes.
OPSETS = range(18, 24)

Table = dict[Callable[..., Any], Callable[..., Any]]


def translation_table(
    *, opset: int | None = None, seed: int | None = None, keep_randomness: bool = False, functions: bool = False
) -> Table:
    """What torch's pooling becomes in ONNX: right at any size, in every version of onnxruntime from 1.20 on.

    For ``torch.onnx.export(..., dynamo=True, custom_translation_table=translation_table())``; ``poolexport.export``
    uses it by itself. With it plain ``torch.onnx.export`` also takes the layers of ``poolexport.nn``, and refuses a
    model that draws random numbers, or is in training mode, instead of writing a file that answers differently at
    every run. Two things are past before a table is asked, so that it cannot see them: numbers drawn by Python or
    numpy, which a trace holds as constants, and sizes that torch reads as numbers; ``tracing`` is for the latter.

    Args:
        opset: the version that ``opset_version`` asks torch's exporter for, 18 to 23. The table is the same for all,
            as torch converts what it writes; where this is given, operators that no onnxruntime can run in that
            version are refused.
        seed: fixes the regions of fractional max pooling without samples, one for every channel; without a seed it is
            refused. With dynamic sizes, an ``output_ratio`` and poolings in three dimensions need ``tracing``, and the
            seed there.
        keep_randomness: let the file draw, and leave layers in training mode as they are.
        functions: leave ``poolexport::`` nodes without bodies, for an exporter that attaches them; False writes
            standard operators only.

    Raises:
        InputError: torch's exporter does not write that opset, or the seed is none.

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
    if opset is not None and opset not in OPSETS:
        raise InputError(
            f"torch.onnx.export writes opsets {OPSETS.start} to {OPSETS.stop - 1}, not {opset}; poolexport.export "
            "writes 17 to 28"
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise InputError(f"seed must be a whole number of at least 0, got {seed!r}")
    names = counter()
    table: Table = {}
    for family in FAMILIES:
        for name, write in family.entries().items():
            overload = _overload(name)
            if overload is not None:
                table[overload] = entry(overload, write, functions, names, opset)
    for name, write in scatter.accumulating().items():
        overload = _overload(name)
        table[overload] = _where_accumulating(overload, entry(overload, write, functions, names, opset))
    table |= rounding.entries()
    if not keep_randomness:
        table |= randomness.refusals(seed)
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
    """The operator of a qualified name, ``aten::add`` or ``aten::add.Tensor``, or None where it is not registered."""
    namespace, _, operator = name.partition("::")
    operator, _, overload = operator.partition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), operator), overload or "default")
    except AttributeError:
        return None
