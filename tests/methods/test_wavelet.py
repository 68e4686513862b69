"""What the conformance suite cannot see of wavelet pooling: the filters, and the paper's forward pass written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from poolexport.methods.wavelet import FILTERS
from poolexport.nn import WaveletPool2d


def analyse(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four Haar subbands of an even image."""
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2


def synthesise(ll: Tensor, lh: Tensor, hl: Tensor, hh: Tensor) -> Tensor:
    rows = [
        torch.stack([ll + lh + hl + hh, ll - lh + hl - hh], -1),
        torch.stack([ll + lh - hl - hh, ll - lh - hl + hh], -1),
    ]
    return torch.stack([row.flatten(-2) for row in rows], -2).flatten(-3, -2) / 2


def test_the_papers_two_levels_are_the_low_band():
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    first = analyse(x)[0]
    pooled = synthesise(*analyse(first))
    torch.testing.assert_close(WaveletPool2d()(x), pooled)
    # And it is not what a layer would answer that leaves the second level's details out as well.
    zero = torch.zeros_like(first[..., ::2, ::2])
    assert not torch.allclose(pooled, synthesise(analyse(first)[0], zero, zero, zero))


@pytest.mark.parametrize("name", ["haar", "db2", "db3"])
def test_orthogonal_filters_are_orthonormal_and_smooth(name):
    h = [math.sqrt(2) * tap for tap in FILTERS[name]]
    for shift in range(0, len(h), 2):
        assert sum(a * b for a, b in zip(h[shift:], h)) == pytest.approx(float(shift == 0), abs=1e-15)
    for moment in range(len(h) // 2):
        assert sum((-1) ** k * k**moment * tap for k, tap in enumerate(h)) == pytest.approx(0, abs=1e-13)
    # Of the two mirror images, the one whose weight comes first.
    assert abs(h[0]) >= abs(h[-1])


@pytest.mark.parametrize("name", FILTERS)
def test_filters_keep_a_constant(name):
    assert math.fsum(FILTERS[name]) == pytest.approx(1, abs=1e-15)
    layer = WaveletPool2d("low_band", name, scale="mean")
    assert layer(torch.ones(1, 1, 20, 20))[..., 4:6, 4:6].unique().item() == pytest.approx(1)
