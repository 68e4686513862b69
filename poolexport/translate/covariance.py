"""Covariance: torch.cov in products and sums, without a look at values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rules() -> dict[Any, Any]:
    return {torch.cov: _cov, torch.Tensor.cov: _cov}


def _cov(x: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None) -> Tensor:
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    rows = x.reshape(1, -1) if x.dim() < 2 else x
    weights = None
    if aweights is not None:
        weights = aweights.to(x.dtype) if fweights is None else aweights.to(x.dtype) * fweights
    elif fweights is not None:
        weights = fweights.to(x.dtype)
    count = rows.new_ones(1) * rows.shape[1]
    if weights is None:
        total = count
        centred = rows - rows.mean(1, keepdim=True)
        centred = centred - centred.mean(1, keepdim=True)
        weighted = centred
    else:
        total = weights.sum().reshape(1)
        centred = rows - (rows * weights).sum(1, keepdim=True) / total
        weighted = centred * weights
    if aweights is None or weights is None or not correction:
        divisor = total - correction
    else:
        divisor = total - correction * (weights * aweights.to(x.dtype)).sum() / total
    y = weighted @ centred.mT / divisor.clamp(min=0)
    return y if x.dim() > 1 else y.reshape(())
