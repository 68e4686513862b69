"""Adaptive max pooling is torch's, indices included, and one file of it serves every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conformance.lab import Specimen
from poolexport import stress
from poolexport.method import Case
from poolexport.methods.adaptive_max import METHOD

TORCHS = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
SIZES = {1: (1, 5, 16), 2: (3, (7, 1), (None, 4), (20, 2)), 3: (2, (3, None, 1))}
PATTERNS = ("normal", "ties", "nan", "-inf", "+inf")


@pytest.mark.parametrize("rank", TORCHS)
def test_layers_are_torchs(rank):
    for size in SIZES[rank]:
        for lengths in ((7, 9, 4), (2, 1, 6), (12, 12, 12)):
            x = torch.randn(2, 3, *lengths[:rank], requires_grad=True)
            ours = METHOD.layer(rank)(size)(x)
            theirs = TORCHS[rank](size)(x)
            assert torch.equal(ours, theirs)
            mine, his = (torch.autograd.grad((y * y).sum(), x, retain_graph=True)[0] for y in (ours, theirs))
            assert torch.equal(mine, his)


@pytest.mark.parametrize("rank", TORCHS)
@pytest.mark.parametrize("return_indices", [False, True])
def test_one_file_serves_every_size_bit_for_bit(rank, return_indices):
    """More cells than bins, as many, fewer, and a single one; values and indices are those of torch.nn."""
    for size in SIZES[rank]:
        options = {"output_size": size, "return_indices": return_indices}
        specimen = Specimen(METHOD, Case("sizes", options, shape=(2, 3, *(6, 5, 4)[:rank])))
        for n in (1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 33):
            for pattern in PATTERNS:
                x = stress.draw(pattern, (1, 3, *(n, n // 2 + 1, 5)[:rank]))
                expected = TORCHS[rank](**options)(torch.from_numpy(x))
                expected = expected if return_indices else (expected,)
                for answer, truth in zip(specimen.onnx(x), expected, strict=True):
                    np.testing.assert_array_equal(answer, truth.numpy(), err_msg=f"{size}, {x.shape}, {pattern}")


def test_the_last_nan_of_a_bin_is_named():
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[0, 0, 1, 0] = x[0, 0, 0, 1] = np.nan
    specimen = Specimen(METHOD, Case("nan", {"output_size": 2, "return_indices": True}, shape=(1, 1, 5, 5)))
    for values, indices in (specimen.torch(x), specimen.onnx(x)):
        np.testing.assert_array_equal(np.isnan(values[0, 0]), [[True, False], [False, False]])
        np.testing.assert_array_equal(indices[0, 0], [[4, 2], [8, 10]])
