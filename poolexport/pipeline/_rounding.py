"""How far off torch itself might be: its answers where every operator rounds another way (Monte Carlo arithmetic).

The input's own conditioning does not tell. A covariance of nearly equal channels is far from every singular matrix to
the float64 model, and singular or not by the last bits that a float32 product leaves. So the model is run as it is,
each operator computes in float64, and every result that float32 does not hold exactly moves to one of its two
neighbours by lot. What is exact stays: equal cells remain equal, and whole numbers whole.

Source: D. S. Parker, Monte Carlo Arithmetic, UCLA CSD-970002, 1997.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from poolexport.errors import InputError
from poolexport.pipeline._run import run
from poolexport.pipeline._state import tensors_of

#: Runs; each rounds every number anew.
SAMPLES = 8


def rounded_otherwise(model: nn.Module, inputs: Sequence[Tensor], seed: int) -> list[list[np.ndarray]]:
    """Answers of a model that rounds at random, a list of outputs each; a matrix that has no factor has NaN for one."""
    answers = []
    for number in range(SAMPLES):
        try:
            with RoundedByLot(seed + number):
                answers.append([t.numpy() for t in tensors_of(run(model, inputs))])
        except InputError:
            # The model refuses what its own rounding led to; the others still tell.
            continue
    return answers


class RoundedByLot(TorchDispatchMode):
    """Every operator computes in float64, and rounds its result up or down by lot."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._linalg_check_errors.default:
            return None
        results = func(*args, **kwargs)
        if func._schema.is_mutable or func.is_view or not any(_is_narrow(t) for t in tensors_of(results)):
            return results
        try:
            exact = func(*_wide(args), **_wide(kwargs))
        except (RuntimeError, NotImplementedError):
            return results
        if isinstance(results, Tensor):
            return self._moved(results, exact)
        moved = [self._moved(y, z) for y, z in zip(results, exact)]
        if func._schema.name.endswith("_ex"):
            # The last answer says which matrices of a batch failed.
            failed = ((results[-1] != 0) | (exact[-1] != 0))[..., None, None]
            moved[0] = moved[0].masked_fill(failed, torch.nan)
        return type(results)(moved) if isinstance(results, list) else tuple(moved)

    def _moved(self, usual: Any, exact: Any) -> Any:
        """A result of float32 or less, moved by a unit up or down where it was rounded."""
        if not isinstance(usual, Tensor) or not _is_narrow(usual) or exact.dtype != torch.float64:
            return usual
        signs = torch.randint(0, 2, usual.shape, generator=self._generator) * 2 - 1
        moved = (exact * (1 + torch.finfo(usual.dtype).eps * signs)).to(usual.dtype)
        rounded = usual.isfinite() & moved.isfinite() & (exact.to(usual.dtype).double() != exact)
        return torch.where(rounded, moved, exact.to(usual.dtype))


def _is_narrow(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64


def _wide(value: Any) -> Any:
    """Arguments in float64."""
    if isinstance(value, dict):
        return {key: _wide(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_wide(entry) for entry in value)
    if _is_narrow(value):
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value
