"""The power of two just below a magnitude: dividing by it brings numbers near 1 and rounds none of them.

What cancels exactly still does afterwards, which it need not after a division by the magnitude itself.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body


def power_of_two(magnitude: Tensor) -> Tensor:
    """The largest power of two that is not above each magnitude; 1 for 0, NaN and infinities. It has no gradient.

    Example:
        >>> power_of_two(torch.tensor([0.75, 1.0, 7.0, 0.0]))
        tensor([0.5000, 1.0000, 4.0000, 1.0000])
    """
    magnitude = magnitude.detach()
    mantissa, _ = torch.frexp(magnitude)
    power = magnitude / (2 * mantissa)
    return torch.where((magnitude > 0) & magnitude.isfinite(), power, 1.0)


def power_of_two_node(op: Body, magnitude: ir.Value) -> ir.Value:
    """A power of two within a factor of two of each magnitude; 1 for 0, NaN and infinities.

    The exponent comes from a logarithm, which may miss it by one beside a power of two; the power itself comes from a
    table, because Pow need not be exact.
    """
    info = np.finfo(op.dtype.numpy())
    lowest, highest = int(info.minexp - info.nmant), int(info.maxexp - 1)
    table = op.constant(np.ldexp(np.ones(1, op.dtype.numpy()), np.arange(lowest, highest + 1)))
    usable = op.And(op.Greater(magnitude, op.number(0.0)), op.Less(magnitude, op.number(math.inf)))
    one = op.number(1.0)
    log = op.Mul(op.Log(op.Where(usable, magnitude, one)), op.number(1 / math.log(2)))
    place = op.Sub(op.cast(op.Floor(log), ir.DataType.INT64), op.constant(np.array(lowest)))
    place = op.Min(op.Max(place, op.constant(np.array(0))), op.constant(np.array(highest - lowest)))
    return op.Where(usable, op.Gather(table, place, axis=0), one)
