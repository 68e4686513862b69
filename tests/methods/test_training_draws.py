"""Layers that are random in training draw with the probabilities of their papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from poolexport.nn import MixedPool2d, S3Pool2d, StochasticPool2d

DRAWS = 20_000


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Distance of counts from what is expected, in standard deviations of the chi-square statistic."""
    expected = counts.sum() * probabilities
    assert (counts[expected == 0] == 0).all(), "something impossible was drawn"
    possible = expected > 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def drawn_cells(layer, window: list[float]) -> np.ndarray:
    """How often each cell of one 2 by 2 window is drawn."""
    torch.manual_seed(0)
    x = torch.tensor(window).reshape(1, 1, 2, 2).expand(DRAWS, 1, 2, 2)
    answers = layer.train()(x).flatten().numpy()
    return np.array([(answers == np.float32(value)).sum() for value in window])


@pytest.mark.parametrize("window", [[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 1e-3, 9.0], [1e30, 2e30, 3e30, 4e30]])
def test_stochastic_pool_draws_each_cell_by_its_share(window):
    counts = drawn_cells(StochasticPool2d(2), window)
    shares = np.array(window) / np.sum(window)
    assert chi_square(counts, shares) < 5


def test_a_wrong_rule_would_be_seen():
    counts = drawn_cells(StochasticPool2d(2), [1.0, 2.0, 3.0, 4.0])
    softmax = np.exp([1.0, 2.0, 3.0, 4.0]) / np.exp([1.0, 2.0, 3.0, 4.0]).sum()
    assert chi_square(counts, softmax) > 50
    assert chi_square(counts, np.full(4, 0.25)) > 50


def test_stochastic_pool_draws_every_window_by_itself():
    torch.manual_seed(0)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(1, 1, 40, 40)
    first, second = StochasticPool2d(2).train()(x).reshape(2, 800).numpy()
    assert len(set(first.tolist())) == 4
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


def test_stochastic_pool_never_draws_a_negative_cell_beside_a_positive_one():
    counts = drawn_cells(StochasticPool2d(2, negative="raw"), [-5.0, 1.0, -2.0, 3.0])
    assert chi_square(counts, np.array([0, 0.25, 0, 0.75])) < 5
    assert drawn_cells(StochasticPool2d(2), [0.0, 0.0, 0.0, 0.0]).tolist() == [DRAWS] * 4


@pytest.mark.parametrize("granularity", ["layer", "channel", "window"])
def test_mixed_pool_draws_with_equal_odds_at_its_granularity(granularity):
    torch.manual_seed(0)
    layer = MixedPool2d(2, granularity=granularity).train()
    x = torch.tensor([[0.0, 0.0], [0.0, 4.0]]).repeat(2, 8, 3, 3)
    answers = torch.stack([layer(x) for _ in range(1000)]) == 4.0
    assert abs(answers.double().mean() - 0.5) < 0.03
    per_window = answers.flatten(-2)
    alike_in_channel = bool((per_window == per_window[:, :1, :, :1]).all())
    alike_in_layer = bool((answers == answers[:, :1, :1, :1, :1]).all())
    assert alike_in_layer == (granularity == "layer")
    assert alike_in_channel == (granularity in ("layer", "channel"))
    total = layer.max_count + layer.average_count
    assert total.tolist() == {"layer": [1000], "channel": [1000] * 8, "window": [1000 * 2 * 8 * 9]}[granularity]
    share = layer.max_count.sum() / total.sum()
    assert abs(share - answers.double().mean()) < 1e-6


def test_mixed_pool_settles_on_what_training_drew_more_often():
    torch.manual_seed(0)
    layer = MixedPool2d(2).train()
    x = torch.tensor([[0.0, 0.0], [0.0, 4.0]]).repeat(1, 8, 1, 1)
    for _ in range(101):
        layer(x)
    expected = torch.where(layer.average_count > layer.max_count, 1.0, 4.0)
    assert torch.equal(layer.eval()(x).flatten(), expected)
    assert len(set(expected.tolist())) > 1
    fresh = MixedPool2d(2)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.eval()(x), layer(x))


@pytest.mark.parametrize(("n", "grid"), [(8, 2), (9, 2), (12, 4), (13, 4)])
def test_s3pool_keeps_sorted_lines_of_every_grid_for_the_whole_batch(n, grid):
    torch.manual_seed(0)
    layer = S3Pool2d(2, grid_size=grid, maxpool=False).train()
    lines = torch.arange(float(n))
    x = (lines[:, None] * 100 + lines).repeat(3, 2, 1, 1)
    counts = np.zeros((n // grid * grid // 2, n))
    for _ in range(2000):
        y = layer(x)
        assert y.shape[-2:] == (n // grid * grid // 2,) * 2
        assert (y == y[:1, :1]).all(), "one draw serves the whole batch and all channels"
        rows, columns = (y[0, 0, :, 0] // 100).long(), (y[0, 0, 0] % 100).long()
        assert (rows.diff() > 0).all()
        assert (columns.diff() > 0).all()
        counts[np.arange(len(rows)), rows] += 1
    keep = grid // 2
    for line, count in enumerate(counts):
        start, rank = line // keep * grid, line % keep
        size = n - start if line // keep == n // grid - 1 else grid
        odds = np.zeros(n)
        for j in range(size):
            odds[start + j] = math.comb(j, rank) * math.comb(size - 1 - j, keep - 1 - rank) / math.comb(size, keep)
        assert chi_square(count, odds) < 5


def test_s3pool_expectation_is_the_mean_of_its_draws():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 13, 12, dtype=torch.float64)
    layer = S3Pool2d(2, grid_size=4, inference="expectation")
    mean = torch.stack([layer.train()(x) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, layer.eval()(x), atol=0.02, rtol=0)
