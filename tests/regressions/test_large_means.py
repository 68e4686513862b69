"""A mean of large cells once left the range of float32 in a layer, though neither the mean nor its file did."""

from __future__ import annotations

import pytest
import torch

from poolexport.nn import AvgMaxPool2d, DynOPool2d, GlobalAvgPool2d, LSEPool2d, StatisticsPool2d, StripPool2d


@pytest.mark.parametrize("layer", [AvgMaxPool2d(), GlobalAvgPool2d(), LSEPool2d(), StripPool2d("rows")], ids=repr)
def test_means_of_large_cells_are_in_range(layer):
    x = torch.full((1, 1, 4, 4), 1e38)
    assert torch.equal(layer(x).flatten().unique(), torch.tensor([1e38]))


def test_statistics_of_large_cells_are_in_range():
    mean, deviation = StatisticsPool2d()(torch.full((1, 1, 4, 4), 1e38)).flatten()
    assert mean == torch.tensor(1e38)
    assert deviation.isfinite()


@pytest.mark.parametrize("value", [None, (2, "a"), 1j, {}, "05", True])
def test_what_is_no_number_is_no_ratio(value):
    with pytest.raises(ValueError, match="ratio must be a finite number or two"):
        DynOPool2d(value)
