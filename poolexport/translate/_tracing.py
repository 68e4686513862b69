"""What no table can reach, because the tracer has fixed it before: calls that are replaced while torch traces.

A dynamic length is lost where torch's own code reads it as a number (MaxPool1d, kernels as large as the map, kept axes
of adaptive max pooling, ratios of fractional pooling), ``torch.cov`` looks at values, and the table's entries never
see complex numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from poolexport.translate import covariance, fourier, fractional, windows

Rule = Callable[..., Any]


@contextmanager
def tracing(*, seed: int | None = None) -> Iterator[None]:
    """Let ``torch.onnx.export`` keep dynamic sizes where its tracer would fix them; needed beside the table only then.

    Args:
        seed: fixes the regions of fractional max pooling without samples, which is refused otherwise.

    Example:
        >>> import torch
        >>> from poolexport.translate import tracing, translation_table
        >>> with tracing():
        ...     program = torch.onnx.export(
        ...         torch.nn.MaxPool1d(3, 2),
        ...         (torch.randn(2, 3, 11),),
        ...         dynamic_shapes=({0: "n", 2: "length"},),
        ...         dynamo=True,
        ...         verbose=False,
        ...         custom_translation_table=translation_table(),
        ...     )
    """
    with _Replacing(_rules(seed)):
        yield


@cache
def _rules(seed: int | None) -> Mapping[Any, Rule]:
    return {**windows.rules(), **fractional.rules(seed), **covariance.rules(), **fourier.rules()}


class _Replacing(TorchFunctionMode):
    def __init__(self, rules: Mapping[Any, Rule]) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = self.rules.get(func) if torch.onnx.is_in_onnx_export() else None
        result = NotImplemented if rule is None else rule(*args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result
