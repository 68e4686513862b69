"""Improved bilinear pooling is the published formula, each of its normalisations by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from poolexport.nn import ImprovedBilinearPool2d


def steps(x: Tensor, iterations: int) -> Tensor:
    """Newton steps on the whole matrix."""
    x = x.flatten(2)
    a = x @ x.mT / x.shape[2]
    norm = torch.linalg.matrix_norm(a).reshape(-1, 1, 1)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    y, z = a / norm, eye.expand_as(a)
    for _ in range(iterations):
        t = 0.5 * (3 * eye - z @ y)
        y, z = y @ t, t @ z
    return (y * norm.sqrt()).flatten(1)


@pytest.mark.parametrize("iterations", [1, 2, 5, 10])
@pytest.mark.parametrize("channels", [3, 40])
def test_published_formula(iterations, channels):
    x = torch.randn(2, channels, 5, 6, dtype=torch.float64)
    z = steps(x, iterations)
    torch.testing.assert_close(ImprovedBilinearPool2d(iterations, signed_sqrt=False, l2norm=False)(x), z)
    root = (z.relu() + 1e-5).sqrt() - ((-z).relu() + 1e-5).sqrt()
    torch.testing.assert_close(ImprovedBilinearPool2d(iterations, l2norm=False)(x), root)
    torch.testing.assert_close(ImprovedBilinearPool2d(iterations)(x), root / root.norm(dim=1, keepdim=True))
    torch.testing.assert_close(
        ImprovedBilinearPool2d(iterations, signed_sqrt=False)(x), z / z.norm(dim=1, keepdim=True)
    )


def test_many_steps_reach_the_root():
    x = torch.randn(1, 4, 6, 7, dtype=torch.float64)
    root = ImprovedBilinearPool2d(30, signed_sqrt=False, l2norm=False)(x).reshape(4, 4)
    torch.testing.assert_close(root @ root, x.flatten(2)[0] @ x.flatten(2)[0].T / 42)


def test_eps_is_inside_the_root():
    x = torch.tensor([[[[2.0]]]])
    answer = ImprovedBilinearPool2d(1, eps=0.5, l2norm=False)(x)  # A = 4, Y = 1: the root is 2
    torch.testing.assert_close(answer, torch.tensor([[2.5**0.5 - 0.5**0.5]]))


def test_zeros_stay_zeros_and_have_finite_gradients():
    x = torch.zeros(1, 3, 4, 5, requires_grad=True)
    answer = ImprovedBilinearPool2d()(x)
    assert torch.equal(answer, torch.zeros(1, 9))
    answer.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_root_keeps_the_digits_of_small_entries():
    x = torch.tensor([[[[1e-8]]]], dtype=torch.float64)
    answer = ImprovedBilinearPool2d(1, l2norm=False)(x)
    torch.testing.assert_close(answer.item(), 1e-8 / (2 * 1e-5**0.5), rtol=1e-3, atol=0)
