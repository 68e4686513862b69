"""Adaptive average pooling is torch's, and one file of it serves every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conformance.lab import Specimen
from poolexport import stress
from poolexport.method import Case
from poolexport.methods.adaptive_average import METHOD

TORCHS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
SIZES = {1: (1, 5, 16), 2: (3, (7, 1), (None, 4), (20, 2)), 3: (2, (3, None, 1))}


@pytest.mark.parametrize("rank", TORCHS)
def test_layers_are_torchs(rank):
    for size in SIZES[rank]:
        for lengths in ((7, 9, 4), (2, 1, 6), (12, 12, 12)):
            x = torch.randn(2, 3, *lengths[:rank], requires_grad=True)
            ours = METHOD.layer(rank)(size)(x)
            exact = TORCHS[rank](size)(x.double())
            assert torch.equal(ours, exact.float()), "the mean in float64 is rounded once"
            mine, his = (torch.autograd.grad((y * y).sum(), x, retain_graph=True)[0] for y in (ours, exact))
            torch.testing.assert_close(mine, his)


@pytest.mark.parametrize("rank", TORCHS)
def test_one_file_serves_every_size(rank):
    """More cells than bins, as many, fewer, and a single one."""
    for size in SIZES[rank]:
        case = Case("sizes", {"output_size": size}, shape=(2, 3, *(6, 5, 4)[:rank]))
        specimen = Specimen(METHOD, case)
        for n in (1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 33):
            lengths = (n, n // 2 + 1, 5)[:rank]
            x = stress.draw("normal", (1, 3, *lengths))
            [answer] = specimen.onnx(x)
            expected = TORCHS[rank](size)(torch.from_numpy(x).double()).numpy()
            np.testing.assert_allclose(answer, expected, rtol=1e-6, atol=1e-6)


def test_long_rows_keep_their_digits():
    """Beside the levels of a hundred thousand cells, what is 0.001 of them is still there."""
    x = 1000 + stress.draw("normal", (1, 2, 100_001))
    for size in (1, 3):
        [answer] = Specimen(METHOD, Case("long", {"output_size": size}, shape=(1, 2, 12))).onnx(x)
        expected = nn.AdaptiveAvgPool1d(size)(torch.from_numpy(x).double()).numpy()
        np.testing.assert_allclose(answer, expected, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_cell_spoils_the_bins_it_lies_in_and_no_other(value):
    x = np.ones((1, 1, 10, 7), np.float32)
    x[0, 0, 4, 2] = value
    spoilt = np.zeros((4, 3), bool)
    spoilt[1, 0] = spoilt[1, 1] = True  # rows 2 to 4; columns 0 to 2 and 2 to 4
    specimen = Specimen(METHOD, Case("local", {"output_size": (4, 3)}, shape=(1, 1, 9, 9)))
    for answer in (*specimen.torch(x), *specimen.onnx(x)):
        np.testing.assert_array_equal(~np.isfinite(answer[0, 0]), spoilt)
