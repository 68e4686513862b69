"""Options and inputs of the wrong kind once ended in another module's error, or were taken for something else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import poolexport
from poolexport import nn as layers
from poolexport.nn import AvgPool2d, MaxPool2d, MixedDropoutPool2d, MixedPool2d, StochasticPool2d


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        ("AvgPool2d", {"kernel_size": 2, "divisor_override": 2.5}, "divisor_override must be an int or None, got 2.5"),
        ("AvgPool2d", {"kernel_size": 2, "ceil_mode": "False"}, "ceil_mode must be a bool, got 'False'"),
        ("LPPool2d", {"norm_type": "2", "kernel_size": 2}, "norm_type must be a number, got '2'"),
        ("LearnedMixedPool2d", {"kernel_size": 2, "channels": (2,)}, "channels must be an int or None"),
        ("MaxDropoutPool2d", {"kernel_size": 2, "keep": True}, "keep must be a number, got True"),
        ("MixedPool2d", {"kernel_size": 2, "lam": "0.5"}, "lam must be a number or None"),
        ("SoftPool2d", {"channel_weights": 1}, "channel_weights must be a str, got 1"),
    ],
)
def test_options_of_the_wrong_kind_are_named(layer, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(layers, layer)(**options)


def test_numbers_of_numpy_are_numbers(tmp_path):
    layer = AvgPool2d(np.int64(2), divisor_override=np.int64(3))
    poolexport.export(layer.eval(), torch.rand(1, 1, 4, 4), tmp_path / "net.onnx")
    assert type(layer.divisor_override) is int


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_what_is_no_floating_point_number_is_refused(dtype):
    for layer in (MaxPool2d(2), AvgPool2d(2), StochasticPool2d(2).eval()):
        with pytest.raises(ValueError, match="expects floating-point numbers"):
            layer(torch.ones(1, 1, 4, 4).to(dtype))
    with pytest.raises(ValueError, match="expects a tensor, got ndarray"):
        MaxPool2d(2)(np.ones((1, 1, 4, 4)))


@pytest.mark.parametrize("kind", [MixedPool2d, MixedDropoutPool2d])
@pytest.mark.parametrize(
    ("granularity", "counts"),
    [
        ("layer", ([1, 2, 3], [3, 2, 1])),
        ("channel", ([1, 2, 3], [3, 2])),
        ("channel", ([1, -2, 3], [3, 2, 1])),
        ("channel", ([1.0, 2.0], [3.0, 2.0])),
    ],
)
def test_counts_that_make_no_sense_are_not_loaded(kind, granularity, counts):
    state = dict(zip(("max_count", "average_count"), map(torch.tensor, counts)))
    with pytest.raises(RuntimeError, match="max_count and average_count must"):
        kind(2, granularity=granularity).load_state_dict(state)


def test_a_share_of_the_maximum_keeps_its_digits_in_float64(tmp_path):
    layer = MixedPool2d(2, lam=0.3).eval()
    bundle = poolexport.export(layer, torch.randn(2, 3, 8, 8, dtype=torch.float64), tmp_path / "net")
    assert bundle.manifest.verdict == "PASS"


def test_indices_of_windows_without_a_real_cell_are_minus_one():
    layer = MaxPool2d((1, 2), 1, (0, 1), dilation=(1, 2), return_indices=True)
    _, indices = layer(torch.arange(3.0).reshape(1, 1, 3, 1))
    assert indices.flatten().tolist() == [-1, -1, -1]


def test_stochastic_training_keeps_nan():
    x = torch.tensor([[[[1.0, torch.nan], [2.0, 3.0]]]])
    assert StochasticPool2d(2).train()(x).isnan().all()
