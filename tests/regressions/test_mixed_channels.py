"""A layer that counted draws for three channels once spread an input of one channel over all three."""

from __future__ import annotations

import pytest
import torch

from poolexport.nn import MixedPool2d


def test_counts_belong_to_a_number_of_channels():
    layer = MixedPool2d(2).train()
    layer(torch.rand(1, 3, 4, 4))
    counts = layer.max_count.clone()
    for mode in (True, False):
        for channels in (1, 2):
            with pytest.raises(ValueError, match=f"counted draws for 3 channels, the input has {channels}"):
                layer.train(mode)(torch.rand(1, channels, 4, 4))
    assert torch.equal(layer.max_count, counts)
