"""A few numbers that tell a tensor from others: enough to find one value of a model in a file, and small enough to keep
one for every value of a network of any size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Prints are the same where their numbers differ by no more than this share of their magnitude. Rounding moves them by
#: far less, even at the end of a deep network; it only decides what is compared, never what is right.
CLOSE = 1e-3


@dataclass(frozen=True)
class Print:
    """What is kept of one tensor.

    Args:
        shape: its lengths.
        dtype: numpy's name of its type.
        lowest, highest: smallest and largest value.
        mean, magnitude: mean of the values, and of their absolute values.
    """

    shape: tuple[int, ...]
    dtype: str
    lowest: float
    highest: float
    mean: float
    magnitude: float

    @classmethod
    def of(cls, x: np.ndarray) -> Print:
        """The print of an array; what has no cells, or no numbers, tells nothing."""
        if not x.size or x.dtype.kind not in "fiub":
            return cls(x.shape, x.dtype.name, 0.0, 0.0, 0.0, 0.0)
        with np.errstate(all="ignore"):
            mean, magnitude = x.mean(dtype=np.float64), np.abs(x).mean(dtype=np.float64)
            return cls(x.shape, x.dtype.name, float(x.min()), float(x.max()), float(mean), float(magnitude))

    @property
    def plain(self) -> bool:
        """Whether all values are equal, so that the print says nothing."""
        return not self.highest > self.lowest

    def fits(self, other: Print) -> bool:
        """Whether shape and type are the same."""
        return (self.shape, self.dtype) == (other.shape, other.dtype)

    def alike(self, other: Print) -> bool:
        """Whether number of axes and type are the same."""
        return (len(self.shape), self.dtype) == (len(other.shape), other.dtype)

    def close(self, other: Print) -> bool:
        """Whether both are prints of the same values, up to rounding."""
        if not self.fits(other):
            return False
        scale = max(abs(other.lowest), abs(other.highest))
        return (
            _close(self.lowest, other.lowest, scale)
            and _close(self.highest, other.highest, scale)
            and _close(self.mean, other.mean, other.magnitude)
            and _close(self.magnitude, other.magnitude, other.magnitude)
        )


def _close(a: float, b: float, scale: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= CLOSE * scale
