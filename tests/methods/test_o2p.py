"""Second-order pooling of both papers."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from conformance.lab import Specimen
from poolexport import catalog
from poolexport.method import Case
from poolexport.nn import O2PPool2d


def logarithm(x: np.ndarray, divisor: int, eps: float) -> np.ndarray:
    """The upper triangles of log(G + eps I), by LAPACK."""
    x = x.astype(np.float64).reshape(*x.shape[:2], -1)
    values, vectors = np.linalg.eigh(x @ x.transpose(0, 2, 1) / divisor + eps * np.eye(x.shape[1]))
    f = (vectors * np.log(values)[:, None]) @ vectors.transpose(0, 2, 1)
    rows, columns = np.triu_indices(x.shape[1])
    return f[:, rows, columns]


@cache
def specimen(reduction: str) -> Specimen:
    """A layer and its file, which takes any number of channels."""
    case = Case("any", {"reduction": reduction}, shape=(2, 3, 4, 5))
    return Specimen(catalog.methods()["o2p"], case, fixed="")


@pytest.mark.parametrize(("channels", "plane"), [(8, (7, 7)), (64, (7, 7)), (128, (14, 14))])
def test_mean_and_sum(channels, plane):
    x = np.abs(np.random.default_rng(0).standard_normal((2, channels, *plane))).astype(np.float32)
    for reduction, divisor in (("mean", plane[0] * plane[1]), ("sum", 1)):
        truth = logarithm(x, divisor, 1e-3)
        for [answer] in (specimen(reduction).torch(x), specimen(reduction).onnx(x)):
            assert np.abs(answer - truth).max() < 2e-6


def test_power_keeps_signs():
    x = torch.tensor([[[[1.0, 2.0]], [[-1.0, 0.5]]]])  # second moments 5 / 2, 0, 1.25 / 2
    torch.testing.assert_close(O2PPool2d(log=False, power=0.5)(x), torch.tensor([[2.5**0.5, 0.0, 0.625**0.5]]))
    y = O2PPool2d(eps=0.1)(x)
    assert y.min() < 0
    torch.testing.assert_close(O2PPool2d(eps=0.1, power=0.75)(x), y.sign() * y.abs() ** 0.75)


def test_single_precision_is_near():
    x = torch.rand(2, 8, 5, 6)
    torch.testing.assert_close(O2PPool2d(compute_dtype="float32")(x), O2PPool2d()(x), rtol=1e-3, atol=1e-4)
    double = x.double()
    assert torch.equal(O2PPool2d(compute_dtype="float32")(double), O2PPool2d()(double))


def test_gradients_are_finite_at_zero():
    for layer in (O2PPool2d(), O2PPool2d(log=False, power=0.5)):
        x = torch.zeros(1, 3, 2, 2, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
