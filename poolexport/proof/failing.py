"""The inputs of a verification that show best what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from poolexport.pipeline.verify import Check, Watch


class Failing:
    """Keeps the smallest inputs that a check failed on, and hands everything on.

    Args:
        then: who is told of every check as well.

    Attributes:
        inputs: the smallest inputs; empty as long as no check failed.
    """

    def __init__(self, then: Watch | None = None) -> None:
        self._then = then
        self._size = 0
        self.inputs: tuple[Tensor, ...] = ()

    def __call__(
        self, check: Check, inputs: Sequence[Tensor], answers: list[np.ndarray] | str, truths: Sequence[np.ndarray]
    ) -> None:
        # a variant of the runtime that is wrong by itself is no fault of a layer
        if check.counts and not check.passed and not check.runtime and (not self.inputs or _size(inputs) < self._size):
            self.inputs, self._size = tuple(inputs), _size(inputs)
        if self._then is not None:
            self._then(check, inputs, answers, truths)


def _size(inputs: Sequence[Tensor]) -> int:
    return sum(x.numel() for x in inputs)
