"""Pooling with "same" padding is torch's own with the pads written out, and stays dynamic in a file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import poolexport
from poolexport.nn import SameAvgPool2d, SameMaxPool1d, SameMaxPool2d


def pads(n: int, k: int, s: int) -> tuple[int, int]:
    """What TensorFlow documents: with no remainder max(k - s, 0) cells, else max(k - n mod s, 0)."""
    total = max(k - s, 0) if n % s == 0 else max(k - n % s, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("s", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 7), (9, 6), (1, 2)])
def test_pads_are_tensorflows(k, s, shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    amounts = [*pads(shape[1], k, s), *pads(shape[0], k, s)]
    assert torch.equal(SameMaxPool2d(k, s)(x), F.max_pool2d(F.pad(x, amounts, value=-math.inf), k, s))
    zeros, ones = F.pad(x, amounts), F.pad(torch.ones_like(x), amounts)
    mean = F.avg_pool2d(zeros, k, s)
    torch.testing.assert_close(SameAvgPool2d(k, s, count_include_pad=True)(x), mean)
    torch.testing.assert_close(SameAvgPool2d(k, s)(x), mean / F.avg_pool2d(ones, k, s))


def test_a_window_without_a_real_cell_is_minus_infinity():
    y = SameMaxPool1d(2, stride=1, dilation=5)(torch.tensor([[[1.0, 2.0, 3.0]]]))
    assert y.flatten().tolist() == [-math.inf, -math.inf, 1.0]


def test_one_file_serves_every_remainder(tmp_path):
    layer = torch.nn.Sequential(SameAvgPool2d(3, 2), SameMaxPool2d(2, 3)).eval()
    axes = {0: "N", 2: "H", 3: "W"}
    bundle = poolexport.export(layer, torch.randn(2, 3, 8, 9), tmp_path / "same", dynamic_shapes=axes)
    runtime = poolexport.session(bundle.path)
    for h in range(1, 14):
        x = torch.randn(1, 3, h, 15 - h)
        [answer] = runtime.run(None, {"input": x.numpy()})
        np.testing.assert_allclose(answer, layer(x).numpy(), rtol=1e-6, atol=1e-6)
