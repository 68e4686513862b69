"""The heads agree with torch's own adaptive layers, in values and in the order of what they concatenate."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from poolexport.nn import AvgMaxPool2d, GlobalMaxPool2d

X = torch.randn(2, 3, 7, 5, dtype=torch.float64)
AVERAGE, MAXIMUM = F.adaptive_avg_pool2d(X, 1), F.adaptive_max_pool2d(X, 1)


def test_heads_are_torchs_layers_combined():
    torch.testing.assert_close(AvgMaxPool2d("mean")(X), (AVERAGE + MAXIMUM) / 2)
    torch.testing.assert_close(AvgMaxPool2d("sum")(X), AVERAGE + MAXIMUM)
    torch.testing.assert_close(AvgMaxPool2d("concat_avg_max")(X), torch.cat([AVERAGE, MAXIMUM], 1))
    torch.testing.assert_close(AvgMaxPool2d("concat_max_avg")(X), torch.cat([MAXIMUM, AVERAGE], 1))


def test_global_max_is_torchs():
    assert torch.equal(GlobalMaxPool2d()(X), MAXIMUM)
    x = X.clone()
    x[0, 1, 3, 2] = float("nan")
    assert GlobalMaxPool2d(keepdim=False)(x).isnan().nonzero().tolist() == [[0, 1]]


def test_cells_that_share_the_maximum_share_its_gradient():
    x = torch.tensor([[[[2.0, 1.0], [2.0, 0.0]]]], requires_grad=True)
    GlobalMaxPool2d()(x).sum().backward()
    assert x.grad.flatten().tolist() == [0.5, 0.0, 0.5, 0.0]
