"""GeM pooling agrees with the published layer, loads its state, and learns the right p."""

from __future__ import annotations

import math

import pytest
import torch

from poolexport.nn import GeMPool2d


def published(x: torch.Tensor, p: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """The formula as it is printed, without any scaling."""
    powers = x.clamp(min=eps) ** p.reshape(1, -1, 1, 1)
    return powers.mean((2, 3), keepdim=True) ** (1 / p.reshape(1, -1, 1, 1))


@pytest.mark.parametrize(("channels", "p"), [(None, [2.9]), (3, [1.2, 3.0, 4.5])])
def test_published_state_gives_published_answers(channels, p):
    layer = GeMPool2d(channels=channels).double()
    layer.load_state_dict({"p": torch.tensor(p)})
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), published(x, torch.tensor(p).double()))


@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "stride": 2, "padding": 1}])
def test_p_gets_the_right_gradient(options):
    layer = GeMPool2d(channels=2, **options).double()
    x = torch.rand(1, 2, 5, 6, dtype=torch.float64)

    def pooled(p):
        return torch.func.functional_call(layer, {"p": p}, (x,))

    assert torch.autograd.gradcheck(pooled, torch.tensor([0.7, 3.0], dtype=torch.float64, requires_grad=True))


def test_a_large_p_is_the_maximum_and_p_1_the_mean():
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(GeMPool2d(1, learned=False)(x), x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(GeMPool2d(1e4, learned=False)(x), x.amax((2, 3), keepdim=True), rtol=1e-3, atol=0)


def test_overflows_only_where_the_answer_does():
    x = torch.tensor([3e38, 1e30, 0.0, 2e38]).reshape(1, 1, 2, 2)
    assert published(x, torch.tensor([3.0])).isinf().all()
    assert math.isclose(GeMPool2d()(x).item(), 3e38 * ((1 + (2 / 3) ** 3) / 4) ** (1 / 3), rel_tol=1e-6)


def test_a_learned_p_below_0_is_refused():
    layer = GeMPool2d()
    layer.load_state_dict({"p": torch.tensor([-0.1])})
    with pytest.raises(ValueError, match="a learned p must stay above 0"):
        layer(torch.rand(1, 1, 4, 4))
