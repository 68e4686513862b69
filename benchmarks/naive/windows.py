"""Windows that slide over a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SoftPool(nn.Module):
    """Stergiou et al.: every cell weighs its exponential."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.window = (kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        e = torch.exp(x)
        return F.avg_pool2d(x * e, *self.window) / F.avg_pool2d(e, *self.window)


class StableSoftPool(nn.Module):
    """The same by softmax over unfolded windows, which never overflows."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        k, s = self.kernel, self.stride
        cells = F.unfold(x.reshape(n * c, 1, h, w), k, stride=s)
        y = (cells * cells.softmax(1)).sum(1)
        return y.reshape(n, c, (h - k) // s + 1, (w - k) // s + 1)


class Stochastic(nn.Module):
    """Zeiler and Fergus, at inference: every activation weighs itself."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        total = F.avg_pool2d(x, 3, 2)
        return F.avg_pool2d(x * x, 3, 2) / total.clamp(min=torch.finfo(x.dtype).tiny)


class LP(nn.Module):
    """The p-norm of every window, by torch's own function."""

    def __init__(self, p: float, kernel: int, stride: int) -> None:
        super().__init__()
        self.arguments = (p, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.lp_pool2d(x, *self.arguments)


class LIP(nn.Module):
    """Gao et al.: every cell weighs the exponential of a logit that another network gives."""

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        weight = logits.exp()
        return F.avg_pool2d(x * weight, 3, 2, 1) / F.avg_pool2d(weight, 3, 2, 1)


class DetailPreserving(nn.Module):
    """Saeedan et al., "lite" and "sym", with lambda and alpha of every channel at 0."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        cells = F.unfold(x.reshape(n * c, 1, h, w), 2, stride=2)
        distance = (cells - cells.mean(1, keepdim=True)) ** 2 + 1e-3
        weight = (distance / distance.mean(1, keepdim=True)).sqrt() + 1.0
        return ((cells * weight).sum(1) / weight.sum(1)).reshape(n, c, h // 2, w // 2)


class S3Pool(nn.Module):
    """Zhai et al., at inference: dense maxima, then the mean of what might have been kept."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.max_pool2d(x, 2, 1), 2, 2, 1, count_include_pad=False)


class DynOPool(nn.Module):
    """Jang et al. at a ratio of a half: two points by two in every cell, and their maximum."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (2 * round(0.5 * n) for n in x.shape[2:])
        return F.max_pool2d(F.interpolate(x, size=(rows, columns), mode="bilinear", align_corners=False), 2)
