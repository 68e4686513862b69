"""iSQRT-COV pooling is the published module: its steps, its vector, its names."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poolexport
from conformance.lab import Specimen
from poolexport import catalog
from poolexport.method import Case
from poolexport.nn import ImprovedBilinearPool2d, ISQRTCOVPool2d


def published(x: Tensor, iterations: int) -> Tensor:
    """The published steps, in their order, as matrices."""
    n, d = x.shape[:2]
    x = x.flatten(2)
    m = x.shape[2]
    centre = torch.eye(m, dtype=x.dtype) / m - torch.ones(m, m, dtype=x.dtype) / m / m
    c = x @ centre @ x.mT
    trace = torch.einsum("nii->n", c).reshape(n, 1, 1)
    thrice = 3 * torch.eye(d, dtype=x.dtype).expand(n, d, d)
    a = c / trace
    towards = (thrice - a) / 2
    if iterations == 1:
        return a @ towards * trace.sqrt()
    y, z = a @ towards, towards
    for _ in range(iterations - 2):
        towards = (thrice - z @ y) / 2
        y, z = y @ towards, towards @ z
    return y @ (thrice - z @ y) / 2 * trace.sqrt()


@cache
def specimen(iterations: int) -> Specimen:
    """A layer and its file, which takes any number of channels."""
    case = Case("any", {"iterations": iterations, "is_vec": False}, shape=(2, 3, 4, 5))
    return Specimen(catalog.methods()["isqrt_cov"], case, fixed="")


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize(("channels", "plane"), [(8, (7, 7)), (64, (7, 7)), (256, (7, 7))])
def test_steps_are_the_published_ones(iterations, channels, plane):
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((2, channels, *plane)), 0).astype(np.float32)
    truth = published(torch.from_numpy(x).double(), iterations).numpy()
    each = specimen(iterations)
    for [answer] in (each.torch(x), each.onnx(x)):
        np.testing.assert_allclose(answer, truth, rtol=1e-5, atol=1e-7 * np.abs(truth).max())


def test_many_steps_reach_the_root():
    x = torch.randn(1, 4, 6, 7, dtype=torch.float64)
    root = ISQRTCOVPool2d(30, is_vec=False)(x)[0]
    torch.testing.assert_close(root @ root, torch.cov(x.flatten(2)[0], correction=0))
    assert (ISQRTCOVPool2d(5, is_vec=False)(x)[0] - root).abs().max() > 1e-6


def test_vectors_are_upper_triangles_with_one_more_axis():
    x = torch.randn(2, 3, 4, 5)
    matrix = ISQRTCOVPool2d(is_vec=False)(x)
    rows = torch.stack([matrix[:, i, j] for i in range(3) for j in range(i, 3)], 1)
    assert torch.equal(ISQRTCOVPool2d()(x), rows.unsqueeze(2))
    assert torch.equal(ISQRTCOVPool2d(flatten=True)(x), rows)


def test_without_a_root_it_is_the_covariance():
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    answer = ISQRTCOVPool2d(is_sqrt=False, is_vec=False)(x)[0]
    torch.testing.assert_close(answer, torch.cov(x.flatten(2)[0], correction=0))


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, -1.1e20])
def test_maps_without_variance_give_zero(value):
    x = torch.full((1, 3, 1, 7), value, dtype=torch.float64, requires_grad=True)
    answer = ISQRTCOVPool2d()(x)
    assert torch.equal(answer, torch.zeros(1, 6, 1, dtype=torch.float64))
    answer.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert torch.equal(ISQRTCOVPool2d()(torch.randn(1, 3, 1, 1)), torch.zeros(1, 6, 1))


@pytest.mark.parametrize("training", [False, True])
def test_states_of_the_published_module_load(training):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(5, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU()).double()
    assert isinstance(block[1], nn.BatchNorm2d)
    block[1].running_mean = torch.randn(3).double()
    block[1].running_var = torch.rand(3).double() + 0.5
    layer = ISQRTCOVPool2d(input_dim=5, dimension_reduction=3, is_vec=False).double()
    names = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert list(layer.state_dict()) == [f"conv_dr_block.{name}" for name in names]
    layer.load_state_dict({f"conv_dr_block.{name}": value for name, value in block.state_dict().items()})
    layer.train(training)
    block.train(training)
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), published(block(x), 5))
    torch.testing.assert_close(layer.state_dict()["conv_dr_block.1.running_mean"], block[1].running_mean)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="the layer has 5 channels, the input has 4"):
        ISQRTCOVPool2d(input_dim=5, dimension_reduction=3)(torch.randn(1, 4, 3, 3))


@pytest.mark.parametrize("layer", [ISQRTCOVPool2d, ImprovedBilinearPool2d])
def test_single_precision_is_near(layer, tmp_path):
    x = torch.randn(2, 16, 7, 7, generator=torch.Generator().manual_seed(0))
    single = layer(compute_dtype="float32").eval()
    bundle = poolexport.export(single, x, tmp_path / "net.onnx", portable=True)
    [answer] = poolexport.session(bundle.path).run(None, {"x": x.numpy()})
    truth = layer()(x.double()).float()
    for found in (single(x), torch.from_numpy(answer)):
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=2e-6 * float(truth.abs().max()))


def test_the_published_constructor_takes_input_dim_alone():
    layer = ISQRTCOVPool2d(input_dim=4)
    assert not layer.state_dict()
    assert layer(torch.rand(1, 4, 3, 3)).shape == (1, 10, 1)
    with pytest.raises(ValueError, match="the layer has 4 channels, the input has 3"):
        layer(torch.rand(1, 3, 3, 3))
