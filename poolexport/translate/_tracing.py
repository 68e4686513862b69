"""What no table can reach, because the tracer has fixed it before: calls that are replaced while torch traces.

A dynamic length is lost where torch's own code reads it as a number (MaxPool1d, kernels as large as the map, kept axes
of adaptive max pooling, ratios of fractional pooling), ``torch.cov`` looks at values, and the table's entries never
see complex numbers.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode

from poolexport.errors import PoolExportError, RandomnessError, ValueDependentError
from poolexport.source import is_users, place
from poolexport.translate import covariance, fourier, fractional, windows

Rule = Callable[..., Any]


@contextmanager
def tracing(*, seed: int | None = None, keep_randomness: bool = False) -> Iterator[None]:
    """Let ``torch.onnx.export`` keep dynamic sizes where its tracer would fix them; needed beside the table only then.

    Args:
        seed: fixes the regions of fractional max pooling without samples, which is refused otherwise.
        keep_randomness: say nothing of numbers that Python's or numpy's own generator draws, which the graph holds as
            constants.

    Raises:
        ValueDependentError: the model decides by the values of a tensor.
        RandomnessError: one of these generators was drawn from while this was active.

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
    before = _drawn()
    with _Replacing(_rules(seed)):
        try:
            yield
        except PoolExportError:
            raise
        except Exception as error:
            decision = decision_by_values(error, "the model")
            if decision is None:
                raise
            raise decision from error
    for name, state in _drawn().items():
        if state != before[name] and not keep_randomness:
            raise RandomnessError(
                f"{name} was drawn from while the model was traced, and the graph holds what came out as a constant; "
                "give the layer a fixed rule for eval mode"
            )


def _drawn() -> dict[str, Any]:
    """How far the generators are that a trace does not see."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {"Python's random": random.getstate(), "numpy.random": (kind, np.asarray(keys).tobytes(), *rest)}


def decision_by_values(error: BaseException, who: str) -> ValueDependentError | None:
    """What torch's report means where it gave up on a decision by values; None where it gave up on something else.

    Args:
        error: that torch raised.
        who: decided; begins the sentence.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, GuardOnDataDependentSymNode):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    steps = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(cause.__traceback__)]
    lines = [place(file, line) for file, line in steps if is_users(file)]
    return ValueDependentError(
        f"{who} decides by the values of a tensor{f' at {lines[-1]}' if lines else ''}, which a graph cannot follow; "
        "use torch.where, or decide by shapes; for a loop over boxes, use poolexport.nn.RoIMaxPool2d or its like"
    )


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
