"""What the conformance suite cannot see of pooling by rank: torch's own order statistics, ties, and known limits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from poolexport.nn import (
    GlobalTopKPool2d,
    KMaxPool1d,
    MedianPool2d,
    OrdinalPool2d,
    RankWeightedPool1d,
    TopKPool2d,
)


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_the_lower_median_is_torchs(kernel):
    x = torch.randn(2, 3, 9, 11)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    windows = padded.unfold(2, kernel, 1).unfold(3, kernel, 1).flatten(-2)
    assert torch.equal(MedianPool2d(kernel, padding=1)(x), windows.median(-1).values)


def test_a_median_filter_removes_a_spike():
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1e4
    assert not MedianPool2d(3, padding=1)(x).any()


def test_top_k_runs_from_the_maximum_to_the_mean():
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(TopKPool2d(1, 3)(x), F.max_pool2d(x, 3))
    torch.testing.assert_close(TopKPool2d(9, 3)(x), F.avg_pool2d(x, 3))
    torch.testing.assert_close(GlobalTopKPool2d(5, keepdim=False)(x), x.flatten(2).topk(5).values.mean(-1))


def test_k_max_takes_the_first_of_equal_cells_and_keeps_their_order():
    x = torch.tensor([[[2.0, 1.0, 3.0, 1.0, 3.0]]])
    assert KMaxPool1d(4)(x).flatten().tolist() == [2.0, 1.0, 3.0, 3.0]
    assert KMaxPool1d(4, order="value")(x).flatten().tolist() == [3.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize("layer", [KMaxPool1d(4), GlobalTopKPool2d(7)])
def test_planes_smaller_than_k_are_refused(layer):
    with pytest.raises(ValueError, match="has only"):
        layer(torch.zeros(1, 2, 3) if layer.rank == 1 else torch.zeros(1, 2, 2, 3))


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_geometric_weights_need_a_share(alpha):
    with pytest.raises(ValueError, match="alpha must lie in"):
        RankWeightedPool1d(alpha)


def test_an_untrained_ordinal_layer_averages_and_learns_the_maximum():
    x = torch.randn(2, 3, 8, 8)
    layer = OrdinalPool2d(2)
    torch.testing.assert_close(layer(x), F.avg_pool2d(x, 2))
    layer.load_state_dict({"ordinal_weights": torch.tensor([[2.0, -1.0, 0.0, -3.0]])})
    torch.testing.assert_close(layer(x), F.max_pool2d(x, 2))
