"""Statistics pooling agrees with torch's own moments, and the attentive variant with the published network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from poolexport.nn import AttentiveStatisticsPool1d, StatisticsPool1d, StatisticsPool2d

X = torch.randn(2, 3, 17, dtype=torch.float64)
MEAN = X.mean(2)


@pytest.mark.parametrize(
    ("options", "deviation"),
    [
        ({}, X.var(2, correction=0).clamp(min=1e-10).sqrt()),
        ({"unbiased": True, "guard": "variance", "eps": 1e-7}, (X.var(2) + 1e-7).sqrt()),
        ({"unbiased": True, "guard": "deviation", "eps": 1e-5}, X.std(2) + 1e-5),
    ],
    ids=["kaldi", "wespeaker", "speechbrain"],
)
def test_published_models_are_named_by_their_options(options, deviation):
    answer = StatisticsPool1d(keepdim=False, **options)(X)
    torch.testing.assert_close(answer, torch.cat([MEAN, deviation], 1), rtol=1e-10, atol=1e-12)


def test_two_axes_are_pooled_together():
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    expected = torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0)], 1)
    torch.testing.assert_close(StatisticsPool2d(keepdim=False)(x), expected)


def test_large_values_do_not_overflow():
    x = torch.tensor([[[1e30, -1e30, 1e30, -1e30]]])
    torch.testing.assert_close(StatisticsPool1d(keepdim=False)(x), torch.tensor([[0.0, 1e30]]))


@pytest.mark.parametrize("global_context", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_attention_is_the_published_network(global_context, training):
    torch.manual_seed(0)
    layer = AttentiveStatisticsPool1d(3, 4, global_context=global_context, keepdim=False).double().train(training)
    seen = 9 if global_context else 3
    conv1, norm, conv2 = nn.Conv1d(seen, 4, 1).double(), nn.BatchNorm1d(4).double(), nn.Conv1d(4, 3, 1).double()
    parts = {"tdnn.conv.conv": conv1, "tdnn.norm.norm": norm, "conv.conv": conv2}
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    layer.load_state_dict(state)
    norm.train(training)
    h = X
    if global_context:
        deviation = X.var(2, correction=0, keepdim=True).clamp(min=1e-12).sqrt()
        h = torch.cat([X, X.mean(2, keepdim=True).expand_as(X), deviation.expand_as(X)], 1)
    weights = conv2(torch.tanh(norm(torch.relu(conv1(h))))).softmax(2)
    mean = (weights * X).sum(2)
    deviation = (weights * (X - mean[..., None]) ** 2).sum(2).clamp(min=1e-12).sqrt()
    torch.testing.assert_close(layer(X), torch.cat([mean, deviation], 1))


@pytest.mark.parametrize("options", [{"channels": 0}, {"channels": 2, "attention_channels": 0}])
def test_attention_without_channels_is_refused(options):
    with pytest.raises(ValueError, match="must be a positive int"):
        AttentiveStatisticsPool1d(**options)


def test_attention_refuses_other_channels():
    with pytest.raises(ValueError, match="the layer has 2 channels, the input has 3"):
        AttentiveStatisticsPool1d(2)(X.float())
