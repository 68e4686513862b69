"""A mean over whole planes passed verification at 16 x 16 and failed at 64 x 64: one long float32 sum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import poolexport


class MeanOfPlanes(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) + x.sum((-1, -2)) / (x.shape[2] * x.shape[3])


@pytest.mark.parametrize("layer", [nn.AdaptiveAvgPool2d(1), MeanOfPlanes(), poolexport.nn.GlobalAvgPool2d()])
def test_global_mean_of_an_ordinary_image_verifies(layer, tmp_path):
    x = torch.rand(1, 2, 224, 320)
    bundle = poolexport.export(layer.eval(), x, tmp_path / "net", dynamic_shapes={0: "N", 2: "H", 3: "W"})
    assert bundle.manifest.verdict == "PASS"


def test_mean_of_a_long_row_verifies(tmp_path):
    bundle = poolexport.export(poolexport.nn.GlobalAvgPool1d().eval(), 1000 + torch.rand(1, 2, 2**18), tmp_path / "net")
    assert bundle.manifest.verdict == "PASS"
