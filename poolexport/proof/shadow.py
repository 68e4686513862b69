"""A second run of a model, in other numbers, inside of its first: what an operator should have made of what it got.

Shadow values go along with torch's own. Wherever a value is a cut they start anew from torch's value, so that what is
seen at the next cut is the error of what lies between, and of nothing before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from poolexport.pipeline._rounding import RoundedByLot
from poolexport.pipeline._standard import shake
from poolexport.pipeline._state import tensors_of

Enter = Callable[[Tensor], Tensor]


class Shadow:
    """Shadow values of the tensors of a run.

    Args:
        enter: makes the first shadow value of a tensor that has none.
        lot: where given, operators take and make values of the usual type, rounded by lot; else they run in float64.
    """

    def __init__(self, enter: Enter = lambda x: x.double(), lot: RoundedByLot | None = None) -> None:
        self._enter = enter
        self._lot = lot
        self._values = WeakTensorKeyDictionary()
        self._pending: Any = None

    def before(self, func: Any, args: Any, kwargs: Any) -> None:
        """Compute the operator's shadow answer, before the operator may overwrite what it is computed from."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            # Another draw is no answer to compare with, and would change all later ones.
            return
        args, kwargs = tree_map(self._shadow_of, (args, kwargs))
        try:
            if self._lot is None:
                self._pending = func(*args, **kwargs)
            else:
                with self._lot:
                    self._pending = func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            # No kernel for float64, or a matrix that has no factor: the shadow starts anew behind this operator.
            self._pending = None

    def after(self, made: list[Tensor]) -> None:
        """Give the shadow answer to what the operator made."""
        answers, self._pending = tensors_of(self._pending), None
        for position, x in enumerate(made):
            answer = answers[position] if position < len(answers) else None
            if answer is not None and answer.shape == x.shape:
                self._values[x] = answer
            else:
                self._values.pop(x, None)

    def value(self, x: Tensor) -> Tensor:
        """The shadow of a tensor."""
        found = self._values.get(x)
        return self._enter(x) if found is None and _is_narrow(x) else x if found is None else found

    def restart(self, x: Tensor) -> None:
        """Begin anew from torch's value, through all the views there are of it."""
        found = self._values.get(x)
        if found is None or not x.is_floating_point():
            self._values.pop(x, None)
            return
        try:
            found.copy_(self._enter(x))
        except RuntimeError:
            self._values.pop(x)

    def _shadow_of(self, value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return torch.float64 if value.is_floating_point and self._lot is None else value
        if not isinstance(value, Tensor) or not value.is_floating_point():
            # Whole numbers choose cells; both runs take those that torch chose.
            return value
        found = self._values.get(value)
        if found is None:
            found = self._enter(value)
            if not isinstance(value, nn.Parameter):
                self._values[value] = found
        return found


def moved(unit: float, seed: int) -> Shadow:
    """A float64 run in which every value that enters is moved by one rounding unit, up or down; whole numbers stay."""

    def enter(x: Tensor) -> Tensor:
        exact = x.double()
        return torch.where(x == x.round(), exact, exact * shake(x, unit, seed + x.numel()))

    return Shadow(enter)


def by_lot(seed: int) -> Shadow:
    """A run in the usual type in which every operator rounds at random."""
    return Shadow(lambda x: x.clone(), RoundedByLot(seed))


def _is_narrow(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype != torch.float64
