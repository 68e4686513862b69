"""Products of channels, and functions of matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CompactBilinear(nn.Module):
    """Gao et al.: two count sketches of every location, convolved by Fourier transforms, and added up."""

    def __init__(self, hashes: Tensor, signs: Tensor, size: int) -> None:
        super().__init__()
        self.size = size
        for k in range(2):
            sketch = torch.zeros(hashes.shape[1], size)
            sketch[torch.arange(hashes.shape[1]), hashes[k]] = signs[k]
            self.register_buffer(f"sketch{k}", sketch)

    def forward(self, x: Tensor) -> Tensor:
        columns = x.flatten(2).transpose(1, 2)
        first, second = (torch.fft.rfft(columns @ sketch) for sketch in (self.sketch0, self.sketch1))
        return torch.fft.irfft(first * second, n=self.size).sum(1)


class MatrixLog(nn.Module):
    """Ionescu et al.: the logarithm by the eigenvalues, which no exporter of torch can write."""

    def forward(self, s: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(s)
        return (vectors * (values + 1e-3).log().unsqueeze(-2)) @ vectors.transpose(-1, -2)
