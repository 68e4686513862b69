"""Layers that change their own weights whenever they run, in eval mode too: an export changes them in copies only."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import poolexport


class NormalisesItself(nn.Module):
    """A classifier as it is often written: unit rows, made anew in place at every call."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        with torch.no_grad():
            self.weight.div_(self.weight.norm(dim=1, keepdim=True))
        return F.linear(x.mean((2, 3)), self.weight)


class Renormed(nn.Module):
    """An embedding that bounds the rows that it reads, in place."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 3, max_norm=0.1)

    def forward(self, x):
        return x.mean((2, 3)) + self.embedding(torch.arange(1, 2))


@pytest.mark.parametrize("layer", [NormalisesItself, Renormed])
def test_weights_of_the_model_are_as_they_were(layer, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), layer()).eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 5, 6)
    with contextlib.suppress(poolexport.PoolExportError):  # a refusal keeps them as well
        poolexport.export(model, x, tmp_path / "net", dynamic_shapes={0: "N"})
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
