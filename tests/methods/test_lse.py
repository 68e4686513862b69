"""LSE pooling loads published state, learns the right r, and keeps its digits."""

from __future__ import annotations

import math

import pytest
import torch

from poolexport.nn import LSEPool2d


def test_published_state_gives_the_printed_formula():
    layer = LSEPool2d().double()
    layer.load_state_dict({"r": torch.tensor(2.5)})
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), (2.5 * x).exp().mean((2, 3), keepdim=True).log() / 2.5)


@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "stride": 2, "padding": 1}])
def test_r_gets_the_right_gradient(options):
    layer = LSEPool2d(**options).double()
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)

    def pooled(r):
        return torch.func.functional_call(layer, {"r": r}, (x,))

    assert torch.autograd.gradcheck(pooled, torch.tensor(0.7, dtype=torch.float64, requires_grad=True))


def test_a_large_r_is_the_maximum_and_a_small_one_the_mean():
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(LSEPool2d(1e6, learned=False)(x), x.amax((2, 3), keepdim=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(LSEPool2d(1e-6, learned=False)(x), x.mean((2, 3), keepdim=True), rtol=0, atol=1e-6)


def test_overflows_only_where_the_answer_does():
    x = torch.tensor([3e38, -3e38, 0.0, 1e4]).reshape(1, 1, 2, 2)
    assert math.isclose(LSEPool2d()(x).item(), 3e38, rel_tol=1e-6)
    assert math.isclose(LSEPool2d(kernel_size=2)(x).item(), 3e38, rel_tol=1e-6)


def test_a_learned_r_below_0_is_refused():
    layer = LSEPool2d()
    layer.load_state_dict({"r": torch.tensor(-0.1)})
    with pytest.raises(ValueError, match="a learned r must stay above 0"):
        layer(torch.rand(1, 1, 4, 4))
