"""Weights and powers that cancel exactly once left a remainder, having been divided by what is no power of two."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ops.test_operators import run_onnx
from poolexport.nn import LPPool2d, StochasticPool2d
from poolexport_ops import Window
from poolexport_ops._scale import power_of_two

WINDOW = Window.from_torch(2, 2).onnx()


def windows() -> torch.Tensor:
    """Windows of whole numbers and their negatives, in every order of the two."""
    cells = torch.tensor(
        [(a, b, -a, -b) for a, b in itertools.product(range(-12, 13), range(-11, 12))], dtype=torch.float64
    )
    return cells.reshape(-1, 1, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_weights_that_cancel_answer_zero(dtype):
    x = windows().to(dtype)
    assert not StochasticPool2d(2, negative="raw").eval()(x).any()
    [answer] = run_onnx("WeightedAveragePool", WINDOW, x, x)
    assert not answer.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("p", [1, 3, 5])
def test_powers_that_cancel_answer_zero(p, dtype):
    x = windows().to(dtype)
    assert not LPPool2d(p, 2)(x).any()
    [answer] = run_onnx("PowerAveragePool", {**WINDOW, "p": repr(float(p)), "signed": True}, x)
    assert not answer.any()


@pytest.mark.parametrize("p", [0.05, 0.1, 0.01, -0.01, 0.3])
@pytest.mark.parametrize("cells", [(1e20, 1e-26, 1e-26, 1e-26), (1e-30,) * 4, (1e30,) * 4, (1e30, 1e-20, 1e-20, 1e-20)])
def test_small_cells_count_for_low_orders(p, cells):
    x = torch.tensor(cells).reshape(1, 1, 2, 2)
    exact = np.sum(np.asarray(cells, np.float64) ** p) ** (1 / p)
    expected = np.float32(exact) if exact < 1e38 else np.inf
    layer = LPPool2d(p, 2)(x).item()
    [graph] = run_onnx("PowerAveragePool", {**WINDOW, "p": repr(p), "signed": True}, x)
    # The root magnifies the rounding of the sum by the reciprocal of p.
    np.testing.assert_allclose([layer, graph.item()], expected, rtol=2e-6 / abs(p))


def test_powers_of_two_are_exact_over_the_whole_range():
    for dtype, lowest, highest in ((torch.float32, -149, 127), (torch.float64, -1074, 1023)):
        exponents = torch.arange(lowest, highest + 1)
        numbers = torch.from_numpy(np.ldexp(np.ones(1), exponents.numpy())).to(dtype)
        assert torch.equal(power_of_two(numbers), numbers)
        assert torch.equal(power_of_two(numbers[1:] * 1.5), numbers[1:])
