"""SecondMomentPower: a power of every sample's second-moment matrix.

    X X^T / L = U diag(l) U^T      y = sum (l_i + epsilon)^alpha u_i u_i^T over i with l_i > spacing(l_1)

The spacing is the distance from the largest eigenvalue to the next number with as many digits as ``precision`` has,
whatever its exponent. Eigenvalues are squared singular values of X, so those of a square root keep their digits down to
the rounding of the largest, which they would not in a decomposition of X X^T. A NaN or an infinity makes the answer of
its sample NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._jacobi import scaled_left_vectors, weighted_outer
from poolexport_ops._operator import Operator
from poolexport_ops._scale import power_of_two, power_of_two_node
from poolexport_ops._subspace import SafeNode, left_vectors, packed, packed_shape, safe

#: Distance from 1 to the next number of a precision.
SPACINGS = {"float32": 2.0**-23, "float64": 2.0**-52}
#: Eigenvalues closer than this share of their sum have the derivative between them as their divided difference.
CLOSE = 1e-5


class _Power(torch.autograd.Function):
    """Divided differences of the power; its derivative on the diagonal and for eigenvalues that are nearly equal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float, epsilon: Tensor, spacing: float) -> Tensor:
        vectors, values = left_vectors(x, complete=ctx.needs_input_grad[0])
        eigenvalues = values.square() / x.shape[2]
        kept = eigenvalues > spacing * power_of_two(eigenvalues[:, :1])
        powers = torch.where(kept, (eigenvalues + epsilon).pow(alpha), 0.0)
        ctx.save_for_backward(x, vectors, values, kept, powers, epsilon)
        ctx.alpha = alpha
        return (vectors * powers[:, None]) @ vectors.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, vectors, values, kept, powers, epsilon = ctx.saved_tensors
        first, second = values[:, :, None], values[:, None, :]
        gaps, sums = (first - second) * (first + second) / x.shape[2], (first.square() + second.square()) / x.shape[2]
        both, some = kept[:, :, None] & kept[:, None, :], kept[:, :, None] | kept[:, None, :]
        close = both & (gaps.abs() <= CLOSE * sums)
        middle = torch.where(close, sums / 2 + epsilon[:, None], 1.0)
        slopes = torch.where(close, ctx.alpha * middle.pow(ctx.alpha - 1), 0.0)
        apart = some & ~close
        differences = (powers[:, :, None] - powers[:, None, :]) / torch.where(apart, gaps, 1.0)
        inner = vectors.mT @ (gradient + gradient.mT) @ vectors
        inner = inner * torch.where(apart, differences, slopes) / x.shape[2]
        return vectors @ inner @ (vectors.mT @ x), None, None, None


def torch_form(x: Tensor, *, alpha: str, epsilon: str, precision: str, layout: str) -> Tensor:
    """A power of the second moments, differentiable once.

    Args:
        x: (N, C, L).
        alpha: the power, above 0, as text with the digits of a double.
        epsilon: added to every eigenvalue that is kept, as text.
        precision: "float32" or "float64".
        layout: "matrix", or the upper triangle by "rows" or "columns".

    Returns:
        (N, C, C), or (N, C (C + 1) / 2).
    """
    wide, scale, spoilt = safe(x)
    scale = scale.square()
    power = _Power.apply(wide, float(alpha), float(epsilon) / scale[:, :, 0], SPACINGS[precision])
    y = (power * scale.pow(float(alpha))).masked_fill(spoilt, float("nan"))
    return packed(y, layout).to(x.dtype)


def onnx_form(op: Body, x: ir.Value, *, alpha: str, epsilon: str, precision: str, layout: str) -> ir.Value:
    sample = SafeNode.of(op, x)
    wide = sample.op
    vectors, squares = scaled_left_vectors(wide, sample.x)
    locations = wide.cast(wide.Shape(x, start=2, end=3), ir.DataType.DOUBLE)
    eigenvalues = wide.Div(squares, locations)
    largest = wide.ReduceMax(eigenvalues, wide.ints(1), keepdims=1)
    floor = wide.Mul(power_of_two_node(wide, largest), wide.number(SPACINGS[precision]))
    kept = wide.Greater(eigenvalues, floor)
    scale = wide.Mul(sample.scale, sample.scale)
    guarded = wide.Add(eigenvalues, wide.Div(wide.number(float(epsilon)), scale))
    powers = wide.Pow(wide.Where(kept, guarded, wide.number(1.0)), wide.number(float(alpha)))
    shares = wide.Where(kept, wide.Div(powers, wide.Where(kept, squares, wide.number(1.0))), wide.number(0.0))
    y = wide.Mul(weighted_outer(wide, vectors, shares), wide.Pow(scale, wide.number(float(alpha))))
    return sample.answer(y, op.dtype, layout)


def output_shape(x: Tensor, *, alpha: str, epsilon: str, precision: str, layout: str) -> Sequence[int]:
    return packed_shape(x.shape[0], x.shape[1], layout)


second_moment_power = Operator("SecondMomentPower", torch_form, onnx_form, output_shape=output_shape)
