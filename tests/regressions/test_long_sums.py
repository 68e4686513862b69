"""Sums of ordinary large maps, and weights of large cells, once lost digits that the bounds promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import poolexport
from poolexport.nn import (
    AdaPool2d,
    AdaptiveAvgPool2d,
    DPP2d,
    GeMPool2d,
    GlobalMaxPool2d,
    GlobalTopKPool2d,
    LSEPool2d,
    SameAvgPool2d,
    SoftPool2d,
)


def answers(layer, x, path):
    """What the layer and its file answer."""
    example = torch.rand(2, x.shape[1], 9, 11)
    poolexport.export(layer.eval(), example, path, dynamic_shapes={0: "N", 2: "H", 3: "W"}, input_names=["x"])
    with torch.no_grad():
        return layer(x).numpy(), poolexport.session(path).run(None, {"x": x.numpy()})[0]


@pytest.mark.parametrize("layer", [AdaptiveAvgPool2d(2), AdaptiveAvgPool2d(3), SameAvgPool2d(9)], ids=repr)
def test_means_of_a_constant_are_the_constant(layer, tmp_path):
    x = torch.full((1, 1, 224, 224), 0.7)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1)) if isinstance(layer, SameAvgPool2d) else ...
    for answer in answers(layer, x, tmp_path / "net.onnx"):
        np.testing.assert_allclose(answer[inner], np.float32(0.7), rtol=2e-7)


@pytest.mark.parametrize("level", [1e3, 6e4])
def test_summed_weights_of_large_cells_keep_their_digits(level, tmp_path):
    x = torch.full((1, 100, 1, 2), -level)
    x[0, :40, 0, 0] = level
    x[0, :42, 0, 1] = level
    truth = (40 * -level + 42 * level) / 82
    for answer in answers(SoftPool2d((1, 2), channel_weights="summed"), x, tmp_path / "net.onnx"):
        np.testing.assert_allclose(answer[0, 40, 0, 0], truth, rtol=1e-6)


def test_summed_weights_beside_an_infinity_are_the_layers(tmp_path):
    x = torch.tensor([[[[-math.inf, -1001.0]], [[-1000.0, -1001.0]]]])
    layer, file = answers(SoftPool2d((1, 2), channel_weights="summed"), x, tmp_path / "net.onnx")
    np.testing.assert_allclose(file, layer, rtol=1e-6)
    assert np.isneginf(layer[0, 0, 0, 0])


@pytest.mark.parametrize("power", [1e-2, 1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("kernel", [None, (1, 2)])
def test_low_orders_come_near_the_geometric_mean(power, kernel, tmp_path):
    x = torch.tensor([[[[1.0, 9.0]]]])
    truth = 3 * math.exp(power * math.log(3) ** 2 / 2)
    for answer in answers(GeMPool2d(power, kernel, learned=False), x, tmp_path / "net.onnx"):
        np.testing.assert_allclose(answer, truth, rtol=1e-6)


@pytest.mark.parametrize("layer", [LSEPool2d(10.0, 3, 2, 1), LSEPool2d(5000.0, 3, 2, 1, learned=False)], ids=repr)
def test_pads_of_large_cells_are_no_nan(layer):
    x = torch.full((1, 1, 4, 4), -4e37)
    assert torch.equal(layer(x).unique(), torch.tensor([-4e37]))


@pytest.mark.parametrize("value", ["None", "", "max"])
def test_a_normaliser_that_does_not_exist_is_refused(value):
    with pytest.raises(ValueError, match="normalize must be one of 'mean', 'sum', None"):
        DPP2d(normalize=value)


def test_an_empty_axis_is_refused_by_name():
    with pytest.raises(ValueError, match="there is nothing to pool for GlobalMaxPool2d"):
        GlobalMaxPool2d()(torch.zeros(2, 3, 0, 5))


@pytest.mark.parametrize("layer", [DPP2d(), DPP2d(full=True), AdaPool2d(2), GlobalTopKPool2d(4)], ids=repr)
def test_flat_maps_of_the_largest_cells_stay_as_they_are(layer, tmp_path):
    for answer in answers(layer, torch.full((1, 1, 6, 6), 1e38), tmp_path / "net.onnx"):
        np.testing.assert_allclose(answer[0, 0, -1, -1], np.float32(1e38), rtol=1e-6)


def test_distances_of_the_smallest_cells_keep_their_digits(tmp_path):
    x = torch.tensor([[[[1.0, 2.0], [3.0, -5.0]]]]) * 1e-39
    for answer in answers(AdaPool2d(2, weights="idw"), x, tmp_path / "net.onnx"):
        np.testing.assert_allclose(answer.item(), 1.0634e-39, rtol=1e-4)


@pytest.mark.parametrize("variant", ["sym", "asym"])
def test_gradients_of_huge_cells_are_finite(variant):
    x = (1e20 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
    DPP2d(3, variant)(x).sum().backward()
    assert x.grad.isfinite().all()
