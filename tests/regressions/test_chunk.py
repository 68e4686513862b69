"""The sequence that ``chunk`` leaves in a graph was given the type of a tensor."""

from __future__ import annotations

import torch
from torch import nn

import poolexport


class Chunks(nn.Module):
    def forward(self, x):
        first, second, third = x.chunk(3, dim=1)
        return first + second * third


def test_a_model_that_chunks_is_exported(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    for opset in (17, 20):
        bundle = poolexport.export(Chunks().eval(), x, tmp_path / f"{opset}", dynamic_shapes={0: "N"}, opset=opset)
        assert bundle.manifest.verdict == "PASS"
