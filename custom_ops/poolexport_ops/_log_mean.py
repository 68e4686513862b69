"""The logarithm of a mean of exponentials, exact to the last digits both where it is near 0 and where it is not.

    L = log(mean(exp(t_i)))      the largest t_i between 0 and 1/2
      = log1p(mean(expm1(t_i)))

The second form alone keeps the digits of small t, the first alone those of many very negative t; they meet at
mean(expm1(t_i)) = -1/2. ONNX has neither expm1 nor log1p, and torch exports both by their naive forms.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body

MEETING = -0.5


def log_mean(mean_of_expm1: Tensor, mean_of_exp: Tensor) -> Tensor:
    """L, from both means; each branch sees harmless numbers where the other is taken."""
    near = mean_of_expm1 > MEETING
    return torch.where(
        near, torch.log1p(torch.where(near, mean_of_expm1, 0.0)), torch.log(torch.where(near, 1.0, mean_of_exp))
    )


def log_mean_node(op: Body, mean_of_expm1: ir.Value, mean_of_exp: ir.Value) -> ir.Value:
    near = op.Greater(mean_of_expm1, op.number(MEETING))
    return op.Where(near, _log1p(op, mean_of_expm1), op.Log(mean_of_exp))


def expm1_node(op: Body, t: ir.Value) -> ir.Value:
    """exp(t) - 1 = 2 T / (1 - T) with T = tanh(t / 2), for t below 1."""
    tanh = op.Tanh(op.Mul(t, op.number(0.5)))
    return op.Div(op.Add(tanh, tanh), op.Sub(op.number(1.0), tanh))


def _log1p(op: Body, v: ir.Value) -> ir.Value:
    """log(1 + v) = v log(w) / (w - 1) with w = 1 + v as it was rounded: the rounding cancels."""
    one = op.number(1.0)
    w = op.Add(v, one)
    step = op.Sub(w, one)
    lost = op.Equal(step, op.number(0.0))
    return op.Mul(v, op.Where(lost, one, op.Div(op.Log(w), op.Where(lost, one, step))))
