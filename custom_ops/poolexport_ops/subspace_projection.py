"""SubspaceProjection: the projection onto the span of the k leading left singular vectors of every sample.

    X = U S V^T      y = sum u_i u_i^T over i <= k with s_i > 2^-20 s_1

A direction at the level of rounding is no part of the span, so the rank of the answer is the smaller of k and the
numerical rank, and a map of zeros gives zeros. The answer is unique where s_k > s_(k+1). A NaN or an infinity makes
the answer of its sample NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._jacobi import leading_vectors, weighted_outer
from poolexport_ops._operator import Operator
from poolexport_ops._subspace import RANK_BOUND, SafeNode, inverse_gaps, left_vectors, packed, packed_shape, safe


class _Projection(torch.autograd.Function):
    """Only gaps between what is kept and what is dropped divide the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        vectors, values = left_vectors(x, complete=ctx.needs_input_grad[0])
        kept = values > RANK_BOUND * values[:, :1]
        kept[:, k:] = False
        ctx.save_for_backward(x, vectors, values, kept)
        return (vectors * kept[:, None]) @ vectors.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, vectors, values, kept = ctx.saved_tensors
        inner = vectors.mT @ (gradient + gradient.mT) @ vectors
        across = kept[:, :, None] & ~kept[:, None, :]
        turned = inner * inverse_gaps(values) * across
        return vectors @ (turned + turned.mT) @ (vectors.mT @ x), None


def torch_form(x: Tensor, *, k: int, layout: str) -> Tensor:
    """Projection onto the k leading directions, differentiable once.

    Args:
        x: (N, C, L).
        k: dimensions of the subspace.
        layout: "matrix", or the upper triangle by "rows" or "columns".

    Returns:
        (N, C, C), or (N, C (C + 1) / 2).
    """
    wide, _, spoilt = safe(x)
    y = _Projection.apply(wide, k)
    return packed(y.masked_fill(spoilt, float("nan")), layout).to(x.dtype)


def onnx_form(op: Body, x: ir.Value, *, k: int, layout: str) -> ir.Value:
    sample = SafeNode.of(op, x)
    rows, inverse = leading_vectors(sample.op, sample.x, k, RANK_BOUND)
    y = weighted_outer(sample.op, rows, sample.op.Mul(inverse, inverse))
    return sample.answer(y, op.dtype, layout)


def output_shape(x: Tensor, *, k: int, layout: str) -> Sequence[int]:
    return packed_shape(x.shape[0], x.shape[1], layout)


subspace_projection = Operator("SubspaceProjection", torch_form, onnx_form, output_shape=output_shape)
