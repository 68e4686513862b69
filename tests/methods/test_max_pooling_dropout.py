"""Max-pooling dropout draws what its paper says, and its inference rules are the means they claim to be."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from poolexport.methods.max_pooling_dropout import reference
from poolexport.nn import MaxDropoutPool1d, MaxDropoutPool2d
from poolexport_ops.sorted_weighted_pool import sorted_weighted_pool, sorting_network

DRAWS = 20_000


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Distance of counts from what is expected, in standard deviations of the chi-square statistic."""
    expected = counts.sum() * probabilities
    assert (counts[expected == 0] == 0).all(), "something impossible was drawn"
    possible = expected > 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def answers(window: list[float], keep: float) -> dict[float, float]:
    """What the training rule can answer, with the probability of each: all masks, one by one."""
    odds: dict[float, float] = {}
    for mask in itertools.product((0, 1), repeat=len(window)):
        answer = max(m * cell for m, cell in zip(mask, window, strict=True))
        odds[answer] = odds.get(answer, 0.0) + keep ** sum(mask) * (1 - keep) ** (len(window) - sum(mask))
    return odds


def drawn(window: list[float], keep: float, values: list[float]) -> np.ndarray:
    """How often training answers each of ``values`` for one 2 by 2 window."""
    torch.manual_seed(0)
    x = torch.tensor(window).reshape(1, 1, 2, 2).expand(DRAWS, 1, 2, 2)
    drawn = MaxDropoutPool2d(2, keep=keep).train()(x).flatten().numpy()
    counts = np.array([(drawn == np.float32(value)).sum() for value in values])
    assert counts.sum() == DRAWS
    return counts


WINDOWS = ([1.0, 8.0, 2.0, 4.0], [0.0, 3.0, 0.0, 1.0], [-1.0, 2.0, -3.0, 5.0], [-1.0, -2.0, -3.0, -4.0])


@pytest.mark.parametrize("keep", [0.3, 0.8])
@pytest.mark.parametrize("window", WINDOWS)
def test_training_follows_the_masks(window, keep):
    odds = answers(window, keep)
    assert chi_square(drawn(window, keep, list(odds)), np.array(list(odds.values()))) < 5


def test_a_wrong_probability_would_be_seen():
    values = list(answers(WINDOWS[0], 0.3))
    counts = drawn(WINDOWS[0], 0.3, values)
    assert chi_square(counts, np.array(list(answers(WINDOWS[0], 0.7).values()))) > 50
    assert chi_square(counts, np.array(list(answers(WINDOWS[0], 0.33).values()))) > 5


def test_overlapping_windows_agree_on_what_is_dropped():
    torch.manual_seed(0)
    x = torch.tensor([1.0, 5.0, 1.0]).expand(2000, 2, 3)
    y = MaxDropoutPool1d(2, stride=1, keep=0.5).train()(x) == 5
    assert torch.equal(y[..., 0], y[..., 1])
    assert 0.4 < y.double().mean() < 0.6
    assert not torch.equal(y[:, 0], y[:, 1]), "channels are drawn apart"


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("window", WINDOWS)
def test_expectation_is_the_mean_over_all_masks(window, keep):
    mean = sum(answer * odds for answer, odds in answers(window, keep).items())
    x = torch.tensor(window, dtype=torch.float64).reshape(1, 1, 2, 2)
    y = MaxDropoutPool2d(2, keep=keep, inference="expectation").eval()(x).item()
    assert math.isclose(y, mean, rel_tol=1e-13, abs_tol=1e-15)
    assert math.isclose(reference(x, 2, keep=keep, inference="expectation").item(), mean, rel_tol=1e-13, abs_tol=1e-15)
    weighted = MaxDropoutPool2d(2, keep=keep).eval()(x).item()
    assert math.isclose(weighted, mean, rel_tol=1e-13, abs_tol=1e-15) == (min(window) >= 0 or keep in (0.0, 1.0))


def test_expectation_counts_the_real_cells_of_a_partial_window():
    x = torch.tensor([[[-1.0, -2.0, -4.0]]], dtype=torch.float64)
    y = MaxDropoutPool1d(2, ceil_mode=True, keep=0.5, inference="expectation").eval()(x)
    assert y.flatten().tolist() == [-0.25, -2.0]


@pytest.mark.parametrize("inference", ["weighted", "expectation", "scaled", "off"])
def test_keeping_everything_is_max_pooling(inference):
    x = torch.randn(2, 3, 9, 11)
    layer = MaxDropoutPool2d(3, 2, padding=1, keep=1.0, inference=inference)
    expected = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    assert torch.equal(layer.eval()(x), expected)
    assert torch.equal(layer.train()(x), expected)


@pytest.mark.parametrize("size", range(1, 11))
def test_the_network_sorts_and_spreads_nan_to_every_rank(size):
    network = list(sorting_network(size))
    wires = np.array(list(itertools.product((0, 1), repeat=size)))
    truth = -np.sort(-wires, axis=1)
    reached = np.eye(size, dtype=bool)
    for i, j in network:
        assert i < j
        wires[:, i], wires[:, j] = wires[:, [i, j]].max(1), wires[:, [i, j]].min(1)
        reached[:, i] = reached[:, j] = reached[:, i] | reached[:, j]
    assert (wires == truth).all(), "what sorts all zeros and ones sorts everything"
    assert reached.all()


def test_rows_of_weights_are_for_windows_of_that_many_cells():
    x = torch.tensor([[[3.0, 1.0, 2.0, 7.0, 5.0]]])
    window = {"kernel_shape": [3], "strides": [3], "pads": [0, 1], "dilations": [1]}
    median = [1.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 1.0, 0.0]
    assert sorted_weighted_pool(x, **window, weights=median).tolist() == [[[2.0, 6.0]]]
    assert sorted_weighted_pool(x, **window, weights=[1.0, 10.0, 100.0]).tolist() == [[[123.0, 57.0]]]
    with pytest.raises(ValueError, match="weights must hold 3 or 3 x 3 finite numbers"):
        sorted_weighted_pool(x, **window, weights=[1.0, 2.0])
