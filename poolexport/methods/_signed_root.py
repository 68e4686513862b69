"""What bilinear methods do to their sums: a signed square root, then a division by the Euclidean norm."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from poolexport.methods._layers import require_choice, require_positive

ROOTS = ("sign", "jump", "difference", "none")
NORMS = ("floor", "inside", "none")
GUARDS = ("inside", "beside")


class _SignedRoot(torch.autograd.Function):
    """sign(g) sqrt(|g|), whose slope is kept finite at 0; the value is not touched."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, eps: float, guard: str) -> Tensor:
        ctx.save_for_backward(g)
        ctx.eps, ctx.guard = eps, guard
        return g.sign() * g.abs().sqrt()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (g,) = ctx.saved_tensors
        root = (g.abs() + ctx.eps).sqrt() if ctx.guard == "inside" else g.abs().sqrt() + ctx.eps
        return grad * 0.5 / root, None, None


def signed_root(g: Tensor, eps: float, guard: str) -> Tensor:
    """sign(g) sqrt(|g|) with the slope 0.5 / sqrt(|g| + eps), or 0.5 / (sqrt(|g|) + eps) for the guard "beside"."""
    if torch.is_grad_enabled() and g.requires_grad:
        return cast(Tensor, _SignedRoot.apply(g, eps, guard))
    return g.sign() * g.abs().sqrt()


def shifted_root(g: Tensor, eps: float, root: str) -> Tensor:
    """sign(g) sqrt(|g| + eps), or sqrt(max(g, 0) + eps) - sqrt(max(-g, 0) + eps) for "difference"."""
    shift = g.new_tensor([eps])
    size = (g.abs() + shift).sqrt()
    if root == "jump":
        return g.sign() * size
    # A quotient loses no digits where g is small beside eps, as the difference does. Infinities are found by comparing,
    # because the exporter's isinf looks at float32, where 1e40 is one.
    return torch.where(g.abs() == math.inf, g, g / (size + shift.sqrt()))


def normalised(y: Tensor, norm: str, eps: float, axis: int | tuple[int, ...] = 1) -> Tensor:
    """``y`` divided by its norm over some axes: by max(norm, eps), or by sqrt(norm^2 + eps) for "inside"."""
    if norm == "none":
        return y
    length = torch.linalg.vector_norm(y, dim=axis, keepdim=True)
    limit = y.new_tensor([eps])
    return y / (torch.maximum(length, limit) if norm == "floor" else (length.square() + limit).sqrt())


def require_norm(norm: str, eps: float) -> None:
    """Raise a ValueError for a norm that does not exist, or an ``eps`` that does not suit it."""
    require_choice("norm", norm, NORMS)
    if norm == "inside" or eps != 0:
        require_positive("norm_eps", eps)


def require_guard(guard: str, eps: float) -> None:
    """Raise a ValueError for a guard of the gradient that does not exist."""
    require_choice("gradient_guard", guard, GUARDS)
    require_positive("gradient_eps", eps)
