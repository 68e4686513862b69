"""Low-rank bilinear scores are those of a linear classifier on the bilinear features."""

from __future__ import annotations

import torch

from poolexport.nn import BilinearPool2d, LRBP2d

CHANNELS, CLASSES, DIM, RANK = 6, 5, 4, 6


def trained():
    torch.manual_seed(0)
    layer = LRBP2d(CHANNELS, CLASSES, DIM, RANK).double()
    with torch.no_grad():
        layer.bias.normal_()
    return layer, torch.randn(2, CHANNELS, 7, 5, dtype=torch.float64)


def test_scores_are_those_of_bilinear_features():
    layer, x = trained()
    features = BilinearPool2d(root="none", norm="none", is_vec=False)(layer.projection(x))
    signs = torch.tensor([1.0] * (RANK // 2) + [-1.0] * (RANK // 2), dtype=torch.float64)
    for k in range(CLASSES):
        u = layer.classifiers[:, RANK * k : RANK * (k + 1)]
        matrix = (u * signs) @ u.mT
        torch.testing.assert_close(layer(x)[:, k], (features * matrix).sum((1, 2)) + layer.bias[k])


def test_scores_are_differences_of_squared_norms():
    layer, x = trained()
    z = layer.projection(x).flatten(2)
    u = layer.classifiers.reshape(DIM, CLASSES, RANK)
    plus, minus = (torch.einsum("mkr,nml->nkrl", half, z).norm(dim=(2, 3)) ** 2 for half in u.split(RANK // 2, 2))
    torch.testing.assert_close(layer(x), plus - minus + layer.bias)


def test_state_names():
    layer, _ = trained()
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == {
        "projection.weight": (DIM, CHANNELS, 1, 1),
        "projection.bias": (DIM,),
        "classifiers": (DIM, RANK * CLASSES),
        "bias": (CLASSES,),
    }


def test_published_sizes():
    layer = LRBP2d(512, num_classes=200)
    assert layer.classifiers.shape == (100, 1600)
    x = torch.randn(1, 512, 28, 28).relu()
    torch.testing.assert_close(layer(x), layer.double()(x.double()).float(), rtol=1e-5, atol=1e-5)


def test_halves_that_are_alike_cancel():
    """In float32 the two sums of about 1e4 would leave 1e-3."""
    layer = LRBP2d(3, num_classes=2, reduced_dim=4, class_rank=4)
    with torch.no_grad():
        u = layer.classifiers.reshape(4, 2, 2, 2)
        u[:, :, 1] = u[:, :, 0]
    score = layer(100 * torch.rand(1, 3, 9, 9))
    torch.testing.assert_close(score, torch.zeros_like(score), rtol=0, atol=1e-8)
