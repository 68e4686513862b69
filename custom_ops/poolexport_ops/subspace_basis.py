"""SubspaceBasis: the k leading left singular vectors of every sample, with signs.

    X = U S V^T      y_i = u_i for i <= k with s_i > 2^-20 s_1, and 0 for the rest

Of the entries whose magnitude is within a millionth of a vector's largest, the first is positive. A vector is unique
where its singular value is single. A NaN or an infinity makes the answer of its sample NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._jacobi import leading_vectors
from poolexport_ops._operator import Operator
from poolexport_ops._subspace import RANK_BOUND, SafeNode, inverse_gaps, left_vectors, safe

#: Magnitudes above this share of the largest are as large, whatever rounding says.
NEARLY = 1 - 1e-6


class _Basis(torch.autograd.Function):
    """Every gap between a kept direction and any other divides the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        vectors, values = left_vectors(x, complete=True)
        sizes = vectors.abs()
        place = (sizes >= NEARLY * sizes.amax(1, keepdim=True)).int().argmax(1, keepdim=True)
        signs = torch.where(vectors.gather(1, place) < 0, -1.0, 1.0).to(x.dtype)
        vectors = vectors * signs
        kept = (values > RANK_BOUND * values[:, :1])[:, None, :k]
        ctx.save_for_backward(x, vectors, values, kept)
        return vectors[:, :, :k] * kept

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, vectors, values, kept = ctx.saved_tensors
        towards = inverse_gaps(values)[:, :, : gradient.shape[2]].neg()
        turned = (vectors.mT @ (gradient * kept)) * towards
        outer = vectors @ turned @ vectors[:, :, : gradient.shape[2]].mT
        return (outer + outer.mT) @ x, None


def torch_form(x: Tensor, *, k: int) -> Tensor:
    """The k leading directions, differentiable once.

    Args:
        x: (N, C, L) with k at most C.
        k: how many.

    Returns:
        (N, C, k), a direction a column.
    """
    if x.shape[1] < k:
        raise ValueError(f"k is {k}, but the input has only {x.shape[1]} channels; use a smaller k")
    wide, _, spoilt = safe(x)
    return _Basis.apply(wide, k).masked_fill(spoilt, float("nan")).to(x.dtype)


def onnx_form(op: Body, x: ir.Value, *, k: int) -> ir.Value:
    sample = SafeNode.of(op, x)
    wide = sample.op
    rows, inverse = leading_vectors(wide, sample.x, k, RANK_BOUND)
    vectors = wide.Mul(rows, inverse)
    sizes = wide.Abs(vectors)
    bound = wide.Mul(wide.ReduceMax(sizes, wide.ints(2), keepdims=1), wide.number(NEARLY))
    large = wide.cast(wide.GreaterOrEqual(sizes, bound), ir.DataType.DOUBLE)
    place = wide.ArgMax(large, axis=2, keepdims=1)
    entry = wide.GatherElements(vectors, place, axis=2)
    vectors = wide.Where(wide.Less(entry, wide.number(0.0)), wide.Neg(vectors), vectors)
    return sample.answer(wide.Transpose(vectors, perm=[0, 2, 1]), op.dtype)


def output_shape(x: Tensor, *, k: int) -> Sequence[int]:
    return (x.shape[0], x.shape[1], k)


subspace_basis = Operator("SubspaceBasis", torch_form, onnx_form, output_shape=output_shape)
