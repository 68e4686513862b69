"""The same windows as somebody writes them who has met their limits: no overflow, no 0 / 0, NaN stays NaN.

What these answer is what our layers answer, for maps of every stress pattern that `benchmarks/kernels.py` tries first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unfolded(x: Tensor, kernel: int, stride: int, pads: int = 0, fill: float = 0.0) -> Tensor:
    """(N, C, kernel squared, H', W'): the cells of every window."""
    n, c, h, w = x.shape
    rows, columns = ((m + 2 * pads - kernel) // stride + 1 for m in (h, w))
    padded = F.pad(x.reshape(n * c, 1, h, w), (pads,) * 4, value=fill)
    return F.unfold(padded, kernel, stride=stride).reshape(n, c, kernel**2, rows, columns)


def levels(cells: Tensor) -> Tensor:
    """The largest cell of every window, to divide by; 1 where that is 0 or infinite."""
    largest = cells.amax(2, keepdim=True)
    return torch.where((largest > 0) & (largest < torch.inf), largest, 1.0)


class SoftPool(nn.Module):
    """Softmax over unfolded windows."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.window = (kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        cells = unfolded(x, *self.window)
        return (cells * cells.softmax(2)).sum(2)


class LIP(nn.Module):
    """The same with logits of their own, 3/2/1; a pad has no weight."""

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        weights = unfolded(logits, 3, 2, 1, fill=-torch.inf).softmax(2)
        return (unfolded(x, 3, 2, 1) * weights).sum(2)


class Stochastic(nn.Module):
    """Activations as shares of the largest in their window."""

    def forward(self, x: Tensor) -> Tensor:
        cells = unfolded(x.relu(), 3, 2)
        level = levels(cells)
        shares = cells / level
        total = shares.sum(2)
        mean = (shares * shares).sum(2) / torch.where(total == 0, 1.0, total)
        return level.squeeze(2) * mean


class LP(nn.Module):
    """Powers of shares of the largest; NaN where they add up to less than 0, as in torch."""

    def __init__(self, p: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.p, self.window = p, (kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        cells = unfolded(x, *self.window)
        level = levels(cells.abs())
        return level.squeeze(2) * ((cells / level) ** self.p).sum(2) ** (1 / self.p)


class DetailPreserving(nn.Module):
    """With the exponent and the bias that every channel learns; squares in float64, where none of float32 overflows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_lambda = nn.Parameter(torch.zeros(channels))
        self.log_alpha = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        cells = unfolded(x.double(), 2, 2)
        distance = (cells - cells.mean(2, keepdim=True)) ** 2 + 1e-3
        exponent, bias = (p.double().exp().reshape(-1, 1, 1, 1) for p in (self.log_lambda, self.log_alpha))
        weight = (distance / distance.mean(2, keepdim=True)) ** (exponent / 2) + bias
        return ((cells * weight).sum(2) / weight.sum(2)).to(x.dtype)


class S3Pool(nn.Module):
    """Maxima by pairs of rows and of columns: the standard MaxPool of a runtime need not keep NaN."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.maximum(x[:, :, :-1], x[:, :, 1:])
        dense = torch.maximum(rows[..., :-1], rows[..., 1:])
        return F.avg_pool2d(dense, 2, 2, 1, count_include_pad=False)


class DynOPool(nn.Module):
    """Two points by two in every cell, from both neighbours; one of weight 0 is not looked at."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        for axis in (2, 3):
            n, grid = x.shape[axis], 2 * round(self.ratio * x.shape[axis])
            position = ((torch.arange(grid) + 0.5) * n / grid - 0.5).clamp(0, n - 1)
            below = position.floor().long()
            share = (position - below).reshape([-1 if a == axis else 1 for a in range(4)])
            low, high = (x.index_select(axis, i) for i in (below, (below + 1).clamp(max=n - 1)))
            x = torch.where(share == 0, low, low * (1 - share) + high * share)
        return F.max_pool2d(x, 2)
