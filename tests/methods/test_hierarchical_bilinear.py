"""Hierarchical bilinear pooling is the authors' network from its projections to its concatenation."""

from __future__ import annotations

import pytest
import torch

from poolexport.nn import HierarchicalBilinearPool2d

COUNTS = (4, 6, 5)


def layer_and_maps(**options):
    torch.manual_seed(0)
    layer = HierarchicalBilinearPool2d(COUNTS, joint_dim=32, **options).double()
    return layer, [torch.randn(2, c, 7, 9, dtype=torch.float64).relu() for c in COUNTS]


def test_it_is_the_authors_network():
    layer, (a, b, c) = layer_and_maps()
    z1, z2, z3 = layer.bilinear_proj1(a), layer.bilinear_proj2(b), layer.bilinear_proj3(c)
    parts = []
    for product in (z1 * z2, z1 * z3, z2 * z3):
        s = product.sum((2, 3))
        y = s.sign() * s.abs().sqrt()
        parts.append(y / (y.square().sum(1, keepdim=True) + 1e-7).sqrt())
    torch.testing.assert_close(layer(a, b, c), torch.cat(parts, 1), rtol=1e-10, atol=1e-12)


def test_state_has_the_authors_names():
    layer, _ = layer_and_maps()
    shapes = {name: tuple(t.shape) for name, t in layer.state_dict().items()}
    weights = {f"bilinear_proj{k}.weight": (32, c, 1, 1) for k, c in enumerate(COUNTS, 1)}
    assert shapes == {**weights, **{f"bilinear_proj{k}.bias": (32,) for k in (1, 2, 3)}}


def test_the_authors_width():
    assert HierarchicalBilinearPool2d(2)(*(torch.rand(1, 2, 2, 2) for _ in range(3))).shape == (1, 3 * 8192)


def test_projections_that_cancel_give_zeros_with_a_gradient():
    layer, (a, b, c) = layer_and_maps(gradient_guard="beside", gradient_eps=0.03)
    torch.nn.init.zeros_(layer.bilinear_proj3.weight)
    torch.nn.init.zeros_(layer.bilinear_proj3.bias)
    answer = layer(a.requires_grad_(), b, c)
    assert answer[:, 32:].eq(0).all()
    answer.sum().backward()
    assert a.grad.isfinite().all()
    grad = layer.bilinear_proj3.weight.grad
    assert grad.isfinite().all()
    assert grad.ne(0).any()


def test_a_float32_layer_computes_in_float64():
    layer, maps = layer_and_maps()
    narrow = HierarchicalBilinearPool2d(COUNTS, joint_dim=32)
    narrow.load_state_dict(layer.float().state_dict())
    single = [m.float() for m in maps]
    expected = layer.double()(*(m.double() for m in single)).float()
    torch.testing.assert_close(narrow(*single), expected, rtol=0, atol=0)


def test_maps_that_do_not_fit_are_refused():
    layer = HierarchicalBilinearPool2d(2, joint_dim=3)
    x = torch.ones(1, 2, 3, 4)
    with pytest.raises(ValueError, match="one batch, height, width and type"):
        layer(x, x, x[..., :3])
    with pytest.raises(ValueError, match="one batch, height, width and type"):
        layer(x, x.double(), x)
    with pytest.raises(ValueError, match="maps of"):
        layer(x, x[:, :1], x)
