"""The networks take any image, and their holes are really filled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from poolexport_models import CompactCNN, ResidualCNN
from poolexport_models.holes import GlobalMean, answer, hole_of

NETWORKS = (CompactCNN, ResidualCNN)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (3, 1, 9, 21), (2, 1, 4, 4), (5, 1, 33, 8)])
def test_networks_accept_any_batch_and_any_size(network: type[nn.Module], shape: tuple[int, ...]) -> None:
    model = network(lambda channels: nn.AvgPool2d(2)).eval()
    assert model(torch.rand(shape)).shape == (shape[0], 10)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_pool_hole_is_asked_for_the_channels_of_each_place(network: type[nn.Module]) -> None:
    asked: list[int] = []

    def pool(channels: int) -> nn.Module:
        asked.append(channels)
        return nn.MaxPool2d(2)

    model = network(pool, channels=6)
    model.pool1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    model.pool2.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    seen: list[int] = []
    model.eval()(torch.rand(1, 1, 16, 16))
    assert seen == asked
    assert len(asked) == 2


@pytest.mark.parametrize("network", NETWORKS)
def test_the_head_hole_takes_answers_of_any_rank(network: type[nn.Module]) -> None:
    for head, features in ((nn.AdaptiveAvgPool2d((2, 3)), 6), (GlobalMean(), 1), (nn.AdaptiveMaxPool2d(1), 1)):
        model = network(channels=4, classes=7, head=lambda channels, head=head: head).eval()
        assert model.classifier.in_features == 8 * features
        assert model(torch.rand(2, 1, 12, 20)).shape == (2, 7)


def test_a_pooling_in_the_hole_changes_the_answer() -> None:
    x = torch.rand(2, 1, 16, 16)
    torch.manual_seed(0)
    model = CompactCNN(lambda channels: nn.MaxPool2d(2)).eval()
    before = model(x)
    model.pool1 = nn.AvgPool2d(2)
    assert not torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("layer", "hole"),
    [
        (nn.MaxPool2d(2), "pool"),
        (nn.AvgPool2d(3, 1, 1), "pool"),
        (nn.FractionalMaxPool2d(2, output_ratio=0.6), "pool"),
        (nn.AdaptiveAvgPool2d(1), "head"),
        (nn.AdaptiveMaxPool2d((3, 2)), "head"),
        (GlobalMean(), "head"),
    ],
)
def test_the_kind_of_answer_decides_the_hole(layer: nn.Module, hole: str) -> None:
    assert hole_of(layer, 3) == hole


def test_trying_a_layer_leaves_no_trace() -> None:
    layer = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).eval()
    states = layer.state_dict()["0.running_mean"].clone(), torch.get_rng_state()
    assert answer(layer, (2, 3, 4, 4)) == (2, 3, 4, 4)
    assert torch.equal(layer.state_dict()["0.running_mean"], states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    assert not layer.training
